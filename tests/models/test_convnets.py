"""ConvNets: sizes of Table 5 of DRAM, answers for every position, images of another size."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attn_cli.config.schema import Config, ConvNet, Glimpses, Ram, Scales, load
from attn_cli.errors import Refused
from attn_cli.learning.objectives import supervised
from attn_cli.models import convnets
from attn_cli.models.ram import RAM
from attn_cli.models.rollout import draw_noise, rollout

TINY = {"filters": (4, 6), "kernels": (5, 3), "strides": (1, 2), "pools": (3, 2), "hidden": (16, 12), "dropout": 0.0}
SETS = ("kernels", "strides", "pools")  # with a number for each convolution
TARGETS = torch.tensor([[3, 10, -1], [1, 2, 10], [9, 10, -1], [0, 0, 10]])


def make(height: int = 54, width: int = 60, length: int = 2, **changes) -> convnets.ConvNet:
    torch.manual_seed(0)
    config = ConvNet(**{**TINY, **changes})
    return convnets.ConvNet(config, None, None, channels=1, classes=10, length=length, height=height, width=width)


def images(count: int = 4, height: int = 54, width: int = 60) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 1, height, width), dtype=torch.uint8, generator=generator)


def run(model: convnets.ConvNet, pictures: torch.Tensor, record: bool = False):
    return rollout(model, pictures, draw_noise(0, 0, (1, len(pictures), model.steps)), record=record)


@pytest.mark.parametrize(("side", "parameters", "adds"), [(54, 51e6, 2.1e9), (110, 169e6, 8.5e9)])
def test_the_ten_layers_have_the_size_of_table_5(side, parameters, adds):
    with torch.device("meta"):
        model = convnets.ConvNet(ConvNet(), None, None, channels=1, classes=10, length=5, height=side, width=side)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.1)
    assert model.multiply_adds() == pytest.approx(adds, rel=0.1)
    assert sum(isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)) for layer in model.layers) == 10
    assert sum(isinstance(layer, torch.nn.Dropout) for layer in model.layers) == 10


@pytest.mark.parametrize(
    ("side", "changes", "layers"),
    [
        (60, {"filters": (), "hidden": (64, 64)}, [3600 * 64 + 64, 64 * 64 + 64, 64 * 10 + 10]),
        (28, {"filters": (), "hidden": (256, 256)}, [784 * 256 + 256, 256 * 256 + 256, 256 * 10 + 10]),
        (60, {"filters": (8,), "hidden": (256,)}, [8 * 100 + 8, 11 * 11 * 8 * 256 + 256, 256 * 10 + 10]),
        (60, {"filters": (16,), "hidden": (256,)}, [16 * 100 + 16, 11 * 11 * 16 * 256 + 256, 256 * 10 + 10]),
        (100, {"filters": (8,), "hidden": (86,)}, [8 * 100 + 8, 19 * 19 * 8 * 86 + 86, 86 * 10 + 10]),
    ],
)
def test_the_baselines_of_ram_have_the_papers_layers(side, changes, layers):
    sets = {"kernels": (10,), "strides": (5,), "pools": (1,)} if changes["filters"] else dict.fromkeys(SETS, ())
    model = make(side, side, length=0, padding=False, pool_padding=0, **sets, **changes)
    built = [layer for layer in model.layers if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))]
    assert [sum(p.numel() for p in layer.parameters()) for layer in [*built, model.output]] == layers


def test_as_many_parameters_as_ram():
    """All but the big fully-connected network have roughly the same number (captions of Tables 1 and 2)."""
    ram = RAM(Ram(baseline="learned"), Glimpses(6, 12), Scales(3), channels=1, classes=10)
    size = sum(p.numel() for p in ram.parameters())
    for side, filters, hidden in ((60, (), (64, 64)), (60, (8,), (256,)), (100, (8,), (86,))):
        one = {"kernels": (10,), "strides": (5,), "pools": (1,)} if filters else dict.fromkeys(SETS, ())
        model = make(side, side, length=0, padding=False, pool_padding=0, filters=filters, hidden=hidden, **one)
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(size, rel=0.2)


@pytest.mark.parametrize("length", [0, 2])
@pytest.mark.parametrize(
    "changes", [{}, {"padding": False, "pool_padding": 1}, {"filters": (), "hidden": (8, 8)}, {"norm": True}]
)
def test_multiply_adds_against_torch(changes, length):
    if changes.get("filters") == ():
        changes = {**changes, **dict.fromkeys(SETS, ())}
    model = make(length=length, **changes)
    with FlopCounterMode(display=False) as counter:
        logits, _ = run(model, images())
    assert counter.get_total_flops() / 2 == 4 * model.multiply_adds()
    with FlopCounterMode(display=False) as counter:
        logits, _ = run(model, images())
        logits.sum().backward()
    assert counter.get_total_flops() / 2 == 4 * model.multiply_adds(training=True)


def test_dropout_on_all_layers_or_on_the_hidden_ones():
    def drops(**changes) -> int:
        return sum(isinstance(layer, torch.nn.Dropout) for layer in make(**changes).layers)

    assert drops(dropout=0.5) == 4
    assert drops(dropout=0.5, dropout_layers="hidden") == 2
    assert drops() == 0


def test_batch_normalisation_between_a_convolution_and_its_relu():
    kinds = [type(layer).__name__ for layer in make(norm=True).layers]
    one = ["Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU"]
    assert kinds == [*one, *one, "Flatten", "Linear", "ReLU", "Linear", "ReLU"]
    assert [name for name in kinds if name != "BatchNorm2d"] == [type(layer).__name__ for layer in make().layers]


@pytest.mark.parametrize("changes", [{}, {"norm": True}, {"padding": False, "pool_padding": 1}])
def test_the_relu_may_come_after_the_pooling(changes):
    """Choice 7: logits and gradients are those of the papers' order, bit for bit."""
    model, papers = make(**changes), make(**changes)
    layers = list(papers.layers)
    for i, layer in enumerate(papers.layers):
        if isinstance(layer, torch.nn.MaxPool2d):
            layers[i], layers[i + 1] = layers[i + 1], layer
    papers.layers = torch.nn.Sequential(*layers)
    assert [type(layer) for layer in papers.layers] != [type(layer) for layer in model.layers]
    results = []
    for network in (model, papers):
        logits, _ = run(network, images())
        logits.logsumexp(-1).sum().backward()
        results.append([logits, *(p.grad for p in network.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_every_position_has_weights_of_its_own():
    model = make()
    logits, trace = run(model, images(), record=True)
    assert logits.shape == (1, 4, 3, 11) and trace.log_probs.numel() == 0
    for position in range(3):
        before = run(model, images())[0]
        with torch.no_grad():
            model.output.bias.view(3, 11)[position] += 1.0
        moved = (run(model, images())[0] - before).abs().amax((0, 1, 3)) > 0.5
        assert moved.tolist() == [p == position for p in range(3)]
    assert trace.boxes[0, 0, :, 0].tolist() == [[0, 0, 60, 54]] * 3
    assert torch.allclose(trace.patches[0, :, 0, 0], images().float() / 255)


def test_an_image_of_another_size_is_resized():
    """Blocks of 2 × 2 equal pixels shrink to the image they came from, up to the filter's blur: same answers."""
    model = make()
    smooth = torch.linspace(0, 255, 54)[:, None].expand(54, 60).to(torch.uint8)[None, None]
    large = smooth.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(run(model, large)[0], run(model, smooth)[0], atol=0.02)
    # Pixels of both kinds count, not those alone that lie in the middle of a new one.
    striped = torch.tensor([200, 0, 0, 200], dtype=torch.uint8).repeat(60).expand(1, 1, 4 * 54, 4 * 60)
    assert torch.allclose(run(model, striped)[0], run(model, torch.full_like(smooth, 100))[0], atol=0.02)


def test_objective_by_hand():
    """No loss after the end; wrong anywhere is wrong."""
    logits = torch.zeros(1, 4, 3, 11)
    logits[0, :, :, 10] = 5.0
    for b, s, label in ((0, 0, 3), (1, 0, 1), (3, 0, 0), (3, 1, 0)):
        logits[0, b, s, label] = 50.0
    logits.requires_grad_()
    losses = supervised(logits, TARGETS)
    losses.total.backward()
    assert losses.error.item() == 0.5  # images 1 (second label) and 2 (first label)
    assert losses.reward.item() == pytest.approx(8 / 10)
    assert logits.grad[0, 0, 2].abs().sum() == 0 and logits.grad[0, 1, 2].abs().sum() > 0
    one = torch.nn.functional.log_softmax(logits.detach()[0], -1)
    wanted = -(one[0, 0, 3] + one[0, 1, 10] + one[1, 0, 1] + one[1, 1, 2] + one[1, 2, 10] + one[2, 0, 9])
    wanted -= one[2, 1, 10] + one[3, 0, 0] + one[3, 1, 0] + one[3, 2, 10]
    assert losses.total.item() == pytest.approx(wanted.item() / 4)
    single = supervised(logits[:, :, 0], TARGETS[:, 0])
    assert single.total.item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits[0, :, 0], TARGETS[:, 0]).item()
    )


@pytest.mark.parametrize("key", SETS)
def test_lists_of_unequal_length_are_refused(key):
    with pytest.raises(Refused, match=f"model.{key} must have a number for each of the 8"):
        load({"model": {"name": "convnet_10", key: [1, 2]}, "data": {"name": "mnist"}})


def test_images_that_vanish_are_refused():
    with pytest.raises(Refused, match="too small for model=convnet_10: nothing is left of them after its convolution"):
        make(name="convnet_10", height=5, width=5, padding=False)


def test_default_section():
    assert load({"model": {"name": "convnet_10"}, "data": {"name": "mnist"}}) == Config(model=ConvNet())
