"""Soft RAM on the map of a fixed trunk: the trunk is the pretrained network's own, regions are those of the image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from attn_cli.config.schema import Config, ConvNet, Glimpses, Ram, Scales, SoftRam, load
from attn_cli.errors import Refused
from attn_cli.learning import checkpoints
from attn_cli.learning.objectives import supervised
from attn_cli.learning.restore import fill_trunk
from attn_cli.models.convnets import ConvNet as Network
from attn_cli.models.rollout import draw_noise, rollout
from attn_cli.models.soft_ram import SoftRAM
from attn_cli.runs import create

PRETRAINED = ConvNet(
    name="convnet_5",
    filters=(4, 6, 5),
    kernels=(5, 3, 3),
    strides=(2, 1, 1),
    pools=(1, 2, 2),
    pool_padding=0,
    norm=True,
    hidden=(8,),
    dropout=0.3,
    dropout_layers="all",
)
TINY = {"filters": (2, 2, 4), "features": 12, "hidden": 10, "context": "none", "trunk": PRETRAINED}


def make(size: int = 6, **changes) -> SoftRAM:
    torch.manual_seed(0)
    sizes = {"channels": 3, "classes": 10, "height": 40, "width": 32}
    return SoftRAM(SoftRam(**{**TINY, **changes}), Glimpses(3, size), Scales(1), **sizes)


def network() -> Network:
    """The pretrained network, for other images and classes, with statistics of its own."""
    torch.manual_seed(1)
    model = Network(PRETRAINED, None, None, channels=3, classes=4, height=24, width=24)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def images(count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 40, 32), dtype=torch.uint8, generator=generator)


def run(model: SoftRAM, samples: int = 1, record: bool = False, pictures=None):
    seen = images() if pictures is None else pictures
    noise = draw_noise(0, 0, (samples, len(seen), model.steps), numbers=model.noises)
    return rollout(model, seen, noise, greedy=True, record=record)


def config(folder: Path, **keys) -> Config:
    return Config(model=SoftRam(**{**TINY, "trunk_from": str(folder), **keys}))


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A run folder with the weights of network()."""
    folder = create(Config(model=PRETRAINED), tmp_path)
    state = {f"model.{name}": value for name, value in network().state_dict().items()}
    checkpoints.save(folder.checkpoints / "best.ckpt", {"state_dict": state})
    return folder.path


def first_layers(pictures: torch.Tensor) -> torch.Tensor:
    """What comes out of the second set of network(), read off the whole network as it runs; batches of 24×24."""
    seen = {}
    model = network()
    convolutions = [i for i, layer in enumerate(model.layers) if isinstance(layer, torch.nn.Conv2d)]
    model.layers[convolutions[2] - 1].register_forward_hook(lambda layer, inputs, output: seen.update(map=output))
    model.start(pictures, 1)
    return seen["map"]


def test_the_trunk_is_the_pretrained_networks_own_first_layers(pretrained):
    model = make()
    fill_trunk(model.trunk, config(pretrained))
    model.train()  # which changes nothing: no dropout, no statistics of the batch
    pictures = images()[:, :, :24, :24].contiguous()
    found = model.start(pictures, 1).canvas
    assert found.pixels.shape == (4, 6, 6, 6) and (found.height, found.width) == (6, 6)
    assert torch.allclose(found.pixels, first_layers(pictures), atol=1e-5)
    before = {name: value.clone() for name, value in model.trunk.state_dict().items()}
    run(model)
    assert all(value.equal(before[name]) for name, value in model.trunk.state_dict().items())


def test_the_trunk_gets_no_gradient_and_the_rest_does():
    model = make().train()
    logits, _ = run(model)
    supervised(logits, torch.tensor([3, 1, 9, 0])).total.backward()
    for name, p in model.named_parameters():
        if name.startswith("trunk."):
            assert not p.requires_grad and p.grad is None, name
        else:
            assert p.grad is not None and p.grad.norm() > 0, name


@pytest.mark.parametrize("changes", [{}, {"glimpse": "conv"}, {"trunk_layers": 1}])
def test_multiply_adds_against_torch(changes):
    """The trunk runs once an image, whatever the number of glimpses and paths, and never backward."""
    model = make(size=12, **changes)
    channels, height, width = model.shape
    rows, columns = 3 * channels * height * width * 12, 3 * channels * height * 12 * 12  # which torch does not see
    for samples in (1, 3):
        with FlopCounterMode(display=False) as counter:
            run(model, samples)
        path = model.multiply_adds() - model.trunk.adds
        assert counter.get_total_flops() / 2 == 4 * (model.trunk.adds + samples * (path - rows - columns))
    assert model.multiply_adds(training=True) == model.trunk.adds + 3 * path - rows


def placed(x: float, y: float, share: float) -> SoftRAM:
    """A model whose grids all lie at one place of the image's [-1, 1], with that share of the largest stride."""
    model = make(noise=0.0)
    with torch.no_grad():
        model.extraction.weight.zero_()
        bias = [torch.atanh(torch.tensor(x)), torch.atanh(torch.tensor(y)), *(torch.log(torch.tensor([share] * 2)))]
        model.extraction.bias.copy_(torch.tensor([*bias, -4.0, 1.0]))
    return model


def test_boxes_are_those_of_the_image():
    """The map of 10×8 has a quarter of the image's sides: 7/5·0.25 columns and 9/5·0.25 rows a stride, six of them."""
    _, trace = run(placed(0.5, -0.2, 0.25), record=True)
    half_x, half_y = 4 * 3 * 0.25 * 7 / 5, 4 * 3 * 0.25 * 9 / 5
    wanted = [24 - half_x, 16 - half_y, 24 + half_x, 16 + half_y]
    assert trace.boxes[0, 2, 1, 0].tolist() == pytest.approx(wanted, abs=1e-3)
    assert trace.sigmas[0, 0, 0].item() == pytest.approx(4 * 2.718281828**-2, rel=1e-4)


def test_pictures_show_that_region_of_the_image():
    """Of a ramp a narrow filter reads its own place; the gain is for maps alone."""
    ramp = (torch.arange(32) * 4).to(torch.uint8).expand(2, 3, 40, 32).contiguous()
    _, trace = run(placed(0.0, 0.0, 0.5), pictures=ramp, record=True)
    x0, _, x1, _ = trace.boxes[0, 0, 0, 0].tolist()
    places = x0 + (x1 - x0) / 6 * (torch.arange(6) + 0.5) - 0.5
    assert trace.patches.shape == (1, 2, 3, 1, 3, 6, 6)
    assert torch.allclose(trace.patches[0, 1, 2, 0, 2, 3], places * 4 / 255, atol=1e-3)


def test_weights_from_a_file_of_another_maker(tmp_path):
    theirs = {f"layers.{name}": value for name, value in network().layers.state_dict().items()}
    save_file({name: value.contiguous() for name, value in theirs.items()}, tmp_path / "weights.safetensors")
    model = make()
    fill_trunk(model.trunk, config(tmp_path / "weights.safetensors"))
    wanted = network().layers.state_dict()
    assert all(value.equal(wanted[name]) for name, value in model.trunk.state_dict().items())


def test_weights_that_are_absent_or_do_not_fit_are_refused(tmp_path, pretrained):
    trunk = make().trunk
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    (tmp_path / "cut.safetensors").write_bytes(b"12345678")
    save_file({"layers.0.weight": torch.zeros(4, 3, 5, 5)}, tmp_path / "few.safetensors")
    other = create(Config(model=Ram()), tmp_path)
    own = replace(PRETRAINED, strides=(1, 1, 1))
    for says, given in (
        (r"weights are absent: make them with `attn train model=convnet_5", Config(model=SoftRam(**TINY))),
        ("There is no run folder", config(tmp_path / "nowhere")),
        ("is no safetensors file", config(tmp_path / "cut.safetensors")),
        ("lacks the weight", config(tmp_path / "few.safetensors")),
        ("is a run of model=ram: name one of model=convnet_5", config(other.path)),
        (r"model.trunk.strides is \[1, 1\] in the first 2 layers and \[2, 1\] in", config(pretrained, trunk=own)),
    ):
        with pytest.raises(Refused, match=says):
            fill_trunk(trunk, given)
    begun = create(Config(model=SoftRam(**{**TINY, "trunk": own})), tmp_path).path
    for says, path in (
        (r"model.trunk.strides is \[2, 1\] in the first 2 layers and \[1, 1\] in", begun),
        ("has no trunk to begin with", other.path),
    ):
        with pytest.raises(Refused, match=says):
            fill_trunk(trunk, Config(model=SoftRam(**TINY), init_from=(str(path),)))
    assert all(value.equal(before[name]) for name, value in trunk.state_dict().items())


def test_keys_that_contradict_each_other_are_refused():
    for says, keys in (
        ("model.trunk_from is for a model with a trunk", {"trunk_from": "x"}),
        (r"model.trunk_layers=9 is more than the 8 conv", {"trunk": {"name": "convnet_10"}, "trunk_layers": 9}),
        ("model.trunk must be a ConvNet", {"trunk": {"name": "ram"}}),
        ("model.mean_image=true is for images alone", {"trunk": {"name": "convnet_10"}, "mean_image": True}),
        ("model.trunk.kernels must have a number", {"trunk": {"name": "convnet_10", "kernels": [1]}}),
    ):
        with pytest.raises(Refused, match=says):
            load({"model": {"name": "soft_ram", **keys}, "data": {"name": "mnist"}})
    given = load({"model": {"name": "soft_ram", "trunk": {"name": "convnet_10"}}, "data": {"name": "mnist"}})
    assert given.model.trunk == ConvNet() and given.model.trunk_layers == 2


def test_a_map_that_is_not_of_the_images_shape_has_its_own_share_along_each_side():
    """43 rows leave 10 of the map, 32 columns 8."""
    torch.manual_seed(0)
    config = SoftRam(**TINY, noise=0.0)
    model = SoftRAM(config, Glimpses(3, 6), Scales(1), channels=3, classes=10, height=43, width=32)
    pictures = torch.zeros(2, 3, 43, 32, dtype=torch.uint8)
    state = model.step(model.start(pictures, 1), torch.zeros(2, 4), greedy=True)
    rows, columns = model.shape[1:]
    assert rows / 43 != columns / 32
    x0, y0, x1, y1 = model.boxes(state, 43, 32)[0, 0].tolist()
    assert (x1 - x0, y1 - y0) == pytest.approx(
        (32 / columns * 6 * state.grid.stride[0, 0].item(), 43 / rows * 6 * state.grid.stride[0, 1].item())
    )
