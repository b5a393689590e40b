"""Weights of one run as the start, or as a fixed part, of another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from attn_cli.commands import train, train_together
from attn_cli.config.schema import Config, ConvNet, Dram, Glimpses, Ram, Scales, SoftRam, Trainer
from attn_cli.data.splits import DataInfo
from attn_cli.errors import Refused
from attn_cli.learning import checkpoints
from attn_cli.learning.restore import initialise, share, starting_weights
from attn_cli.learning.training import begin, make_learner
from attn_cli.models.dram import DRAM
from attn_cli.models.ram import RAM
from attn_cli.runs import Run, create

SIZES = {"filters": (4, 4, 8), "features": 16, "hidden": 12}


def make(seed: int, length: int = 2, classes: int = 10, **changes) -> DRAM:
    torch.manual_seed(seed)
    config = Dram(**{**SIZES, **changes})
    return DRAM(config, Glimpses(2, 12), Scales(1), channels=1, classes=classes, length=length)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run folder with the best checkpoint of make(1)."""
    return saved(make(1), tmp_path)


def saved(model: torch.nn.Module, outputs: Path) -> Run:
    folder = create(Config(model=Dram(**SIZES)), outputs)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    folder.checkpoints.mkdir(exist_ok=True)
    checkpoints.save(folder.checkpoints / "best.ckpt", {"state_dict": state})
    return folder


def test_everything_is_taken_over_for_longer_sequences(run):
    model = make(2, length=5)
    report = initialise(model, [run])
    assert all(value.equal(make(1).state_dict()[name]) for name, value in model.state_dict().items())
    assert "\n" not in report and f"{len(model.state_dict())} of {len(model.state_dict())}" in report


def test_what_does_not_fit_stays_and_is_reported(run):
    model = make(2, classes=55, length=0)
    with torch.no_grad():
        for p in model.parameters():
            p += 1.0  # biases start alike in every model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = initialise(model, [run]).splitlines()
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    output = "classification_network.output"
    assert changed == {name for name in before if not name.startswith(output)}
    assert report[1:] == [
        f"  new: {output}.weight, (55, 16) here, of shape (11, 16) there",
        f"  new: {output}.bias, (55,) here, of shape (11,) there",
    ]


def test_the_mean_of_several_runs(tmp_path):
    model, others = make(2), [make(3), make(4)]
    for m, count in zip(others, (7, 9), strict=True):
        m.register_buffer("count", torch.tensor(count))
    model.register_buffer("count", torch.tensor(0))
    report = initialise(model, [saved(m, tmp_path) for m in others])
    assert model.count == 7  # no mean: it is a count
    for name, value in model.named_parameters():
        both = [m.state_dict()[name] for m in others]
        assert torch.allclose(value, (both[0] + both[1]) / 2, atol=1e-6)
    assert not torch.allclose(model.lower.gates.weight, others[0].lower.gates.weight, atol=1e-6)
    assert report.startswith("init_from, the mean of 2 runs: ")


def test_runs_of_which_there_is_no_mean_are_named(run, tmp_path):
    wider = saved(make(3, features=20), tmp_path)
    with pytest.raises(Refused, match=rf"{run.path} and {wider.path} differ in shape"):
        initialise(make(2), [run, wider])


def test_nothing_that_fits_is_refused(run):
    other = RAM(Ram(), Glimpses(2, 12), Scales(1), channels=1, classes=10)
    with pytest.raises(Refused, match="has no weights that fit"):
        initialise(other, [run])


def test_a_shared_glimpse_network_stays_fixed(run):
    model = make(2, reader="backward")
    share(model.glimpse_network, "glimpse_network", run)
    wanted = make(1).glimpse_network.state_dict()
    assert all(value.equal(wanted[name]) for name, value in model.glimpse_network.state_dict().items())
    assert not any(p.requires_grad for p in model.glimpse_network.parameters())
    assert not model.lower.gates.weight.equal(make(1).lower.gates.weight) and model.lower.gates.weight.requires_grad
    with pytest.raises(Refused, match="in this model"):
        share(make(2, features=20).glimpse_network, "glimpse_network", run)


def test_a_shared_glimpse_network_wins_over_the_run_to_start_from_and_is_in_the_checkpoint(run, tmp_path):
    other = saved(make(3), tmp_path)
    model = make(2, reader="backward")
    options = Dram(**SIZES, reader="backward", share_glimpse_from=str(run.path))
    config = Config(model=options, init_from=[str(other.path)])
    starting_weights(model, config, resumed=False)
    wanted, start = make(1).state_dict(), make(3).state_dict()
    for name, value in model.state_dict().items():
        assert value.equal((wanted if name.startswith("glimpse_network") else start)[name])
    assert not any(p.requires_grad for p in model.glimpse_network.parameters())
    shutil.rmtree(run.path)  # a run that goes on needs it no more
    model = make(2, reader="backward")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    starting_weights(model, config, resumed=True)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not any(p.requires_grad for p in model.glimpse_network.parameters())


class Noise:
    info = DataInfo("noise", 1, 16, 16, 3, tuple("abc"), 0, 64, 4, 4)

    def steps_per_epoch(self, batch_size):
        return 2

    def train_batch(self, seed, epoch, step, batch_size):
        generator = torch.Generator().manual_seed(step)
        return torch.randint(0, 256, (32, 1, 16, 16), dtype=torch.uint8, generator=generator), torch.arange(32) % 3


@pytest.mark.parametrize("resumed", [False, True])
def test_grids_are_refitted_when_training_begins_not_when_it_goes_on(tmp_path, resumed):
    """A checkpoint of the run holds the new grids."""
    parts = {"glimpses": Glimpses(2, 9), "trainer": Trainer(accelerator="cpu", compile="off")}
    sizes = {"filters": (2, 2, 4), "features": 8, "hidden": 6, "coarse": 9}
    data = Noise()
    first = make_learner(Config(model=SoftRam(**sizes), **parts), data)
    config = Config(model=SoftRam(refit=True, **sizes), init_from=(str(saved(first.model, tmp_path).path),), **parts)
    learner = make_learner(config, data)
    before = learner.model.extraction.bias.clone()
    report = begin(learner, config, data, resumed)
    if resumed:
        assert report is None and learner.model.extraction.bias.equal(before)
    else:
        lines = report.splitlines()
        assert lines[0].startswith("init_from=") and lines[-1].startswith("model.refit: grids ")
        assert not learner.model.extraction.bias.equal(before)


@pytest.mark.parametrize(
    "taken",
    [
        {"init_from": ("nowhere",)},
        {"model": Dram(share_glimpse_from="nowhere")},
        {"model": SoftRam(trunk=ConvNet(name="convnet_5"), trunk_from="nowhere")},
    ],
)
@pytest.mark.parametrize("parallel", [1, 2])
def test_a_run_that_is_not_there_is_told_before_data_is_fetched(parallel, taken, monkeypatch):
    for module in (train, train_together):
        monkeypatch.setattr(module, "open_data", lambda data: pytest.fail("the data was looked for"))
    with pytest.raises(Refused, match="There is no run folder nowhere"):
        train.run(Config(**taken, trainer=Trainer(parallel_seeds=parallel)))
