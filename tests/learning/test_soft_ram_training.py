"""What happens between the epochs of soft attention: the switch of the glimpse network and resets of the classifier, in
a run that is stopped, too.
"""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning.callbacks import Checkpoint

from attn_cli.config import schema
from attn_cli.data.splits import DataInfo
from attn_cli.learning.checkpoints import load
from attn_cli.learning.guards import Checkpoints
from attn_cli.learning.training import begin, fit, make_learner

STEPS, EPOCHS = 3, 4


class Stripes:
    info = DataInfo("stripes", 1, 16, 16, 2, ("across", "down"), 0, 12, 4, 4)

    def steps_per_epoch(self, batch_size):
        return STEPS

    def train_batch(self, seed, epoch, step, batch_size):
        generator = torch.Generator().manual_seed(1000 * epoch + step)
        return torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8, generator=generator), torch.tensor([0, 1, 0, 1])

    def fixed(self, split):
        return self.train_batch(0, 99, 0, 4)


class Stop(Checkpoint):
    """Runs after the checkpoints, and ends training there."""

    def __init__(self, where, step):
        self.where, self.step = where, step

    def _stop(self, where, trainer):
        if (where, trainer.global_step) == (self.where, self.step):
            raise RuntimeError("stopped")

    def on_train_batch_end(self, trainer, *_):
        self._stop("step", trainer)

    def on_train_epoch_end(self, trainer, *_):
        self._stop("epoch", trainer)


def settings(trainer=None, optimizer="adam_onecycle", **model):
    small = {"filters": (2, 2, 4), "features": 8, "hidden": 6, "coarse": 9, "glimpse": "conv", **model}
    return schema.Config(
        model=schema.SoftRam(**small),
        glimpses=schema.Glimpses(2, 9),
        trainer=trainer or schema.Trainer(accelerator="cpu", epochs=EPOCHS, batch_size=4, compile="off"),
        optimizer=schema.Optimizer(optimizer, lr=0.01, attention=0.5),  # two groups of parameters
        seed=1,
    )


def run(folder, resume=None, stop=None, **options):
    config = settings(**options)
    data = Stripes()
    learner = make_learner(config, data)
    simple, outputs = [], []
    forward = learner.loss

    def watched(batch):
        simple.append(learner.model.simple)
        moments = learner._optimiser.state[learner.model.classification_network.output.weight]
        learner.moments.append(sum(value.abs().sum().item() for value in moments.values()))
        outputs.append(learner.model.classification_network.output.weight.detach().clone())
        return forward(batch)

    learner.loss, learner.moments = watched, []
    folder.mkdir(exist_ok=True)
    saved = Checkpoints(folder, 1, 1e-9, learner.finite)
    try:
        fit(learner, config, [saved, *([Stop(*stop)] if stop else [])], resume=resume)
    except RuntimeError as error:
        assert "stopped" in str(error)
    return learner, simple, outputs


def test_the_simple_glimpse_network_is_switched_for_the_real_one(tmp_path):
    learner, simple, _ = run(tmp_path, pretrain_glimpse=2)
    assert simple == [True] * 2 * STEPS + [False] * 2 * STEPS
    saved = load(tmp_path / "last.ckpt")["state_dict"]
    assert not saved["model.pretraining"]
    # A checkpoint of the first epochs is read by the network that wrote it.
    learner.model.load_state_dict(learner.model.state_dict() | {"pretraining": torch.tensor(True)})
    assert learner.model.simple


@pytest.mark.parametrize("simple", [0, EPOCHS - 1, EPOCHS, EPOCHS + 1])
def test_a_convolutional_glimpse_network_that_no_epoch_is_left_for_is_told(simple):
    config = settings(pretrain_glimpse=simple)
    said = begin(make_learner(config, Stripes()), config, Stripes())
    if simple < EPOCHS:
        assert said is None
    else:
        assert said == (
            "The simple glimpse network is trained in all 4 epochs, the convolutional one in none: "
            f"model.pretrain_glimpse={simple} reaches trainer.epochs=4."
        )


def test_gradients_reach_the_network_in_use_alone(tmp_path):
    learner, _, _ = run(tmp_path, pretrain_glimpse=1)
    start = make_learner(learner.config, Stripes()).model.state_dict()
    _, _, _ = run(tmp_path / "two", stop=("epoch", STEPS), pretrain_glimpse=1)
    early = load(tmp_path / "two" / "last.ckpt")["state_dict"]
    late = learner.model.state_dict()

    def moved(name, before, after):
        return not torch.equal(before[name], after[name])

    early = {name.removeprefix("model."): value for name, value in early.items()}
    assert moved("simple_layer.weight", start, early) and not moved("glimpse_layer.weight", start, early)
    assert moved("glimpse_layer.weight", early, late) and moved("convolutions.0.weight", early, late)


def test_the_classifier_is_reset_so_often_and_then_left_alone(tmp_path):
    learner, _, outputs = run(tmp_path, reset_every=1, resets=2)
    new = [step for step, moments in enumerate(learner.moments) if not moments]  # Adam has forgotten the old weights
    assert new == [0, STEPS, 2 * STEPS]
    jumps = [float((after - before).norm()) for before, after in zip(outputs, outputs[1:], strict=False)]
    starts = [jumps[k * STEPS - 1] for k in (1, 2, 3)]
    others = [jump for i, jump in enumerate(jumps) if (i + 1) % STEPS]
    assert min(starts[:2]) > 3 * max(*others, starts[2])


@pytest.mark.parametrize("optimizer", ["adam_onecycle", "sgd"])
@pytest.mark.parametrize("stop", [("step", STEPS + 1), ("step", 2 * STEPS - 1), ("epoch", 2 * STEPS)])
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, stop, optimizer):
    options = {"optimizer": optimizer, "pretrain_glimpse": 2, "reset_every": 1, "resets": 3, "dropout": 0.5}
    whole, simple, _ = run(tmp_path / "whole", **options)
    run(tmp_path / "parts", stop=stop, **options)
    rest, simple_rest, _ = run(tmp_path / "parts", resume=tmp_path / "parts" / "last.ckpt", **options)
    assert simple[stop[1] :] == simple_rest
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name
