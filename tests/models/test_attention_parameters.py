"""What `optimizer.attention` is for: the parameters that do nothing but choose where to look, and their rate."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from attn_cli.config import schema
from attn_cli.data.splits import DataInfo
from attn_cli.errors import Refused
from attn_cli.learning.training import make_learner
from attn_cli.models.build import build_model
from attn_cli.models.rollout import draw_noise, rollout

SMALL = {"filters": (4, 4, 8), "features": 16, "hidden": 12}
MODELS = {
    "ram": (schema.Ram(hidden=12, glimpse_hidden=8, glimpse_features=8), 2),
    "dram": (schema.Dram(**SMALL), 2),
    "soft_ram": (schema.SoftRam(**SMALL), 2),
    "soft_ram without context": (schema.SoftRam(**SMALL, context="none"), 2),
    "soft_ram of one layer": (schema.SoftRam(**SMALL, layers=1), 2),
    "draw_reader": (schema.DrawReader(hidden=12), 2),
    "stn": (schema.Stn(**SMALL), 1),
    "rsam": (schema.Rsam(hidden=256), 2),
}


class Noise:
    """One batch of noise with four answers."""

    def __init__(self, length: int = 0):
        self.info = DataInfo("noise", 1, 32, 32, 4, tuple("abcd"), 0, 8, 8, 8, length)

    def steps_per_epoch(self, batch_size: int) -> int:
        return 1


def config(name: str, attention: float = 1.0) -> schema.Config:
    model, count = MODELS[name]
    return schema.Config(
        model=model,
        glimpses=schema.Glimpses(count, 12),
        optimizer=schema.Optimizer("sgd", lr=0.1, warmup=0.0, momentum=0.0, attention=attention),
        trainer=schema.Trainer(compile="off"),
    )


def images() -> torch.Tensor:
    return torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


SEQUENCES = [("dram", 2), ("soft_ram", 2), ("stn", 2)]


@pytest.mark.parametrize(("name", "length"), [*((name, 0) for name in MODELS), *SEQUENCES])
def test_with_the_place_given_the_answer_teaches_them_nothing_and_all_others_something(name, length):
    torch.manual_seed(0)
    model = build_model(config(name), Noise(length).info)
    if name == "rsam":
        model.mask.register_forward_hook(lambda module, given, mask: mask.detach())
    elif name not in ("ram", "dram"):  # whose places are drawn, and have no gradient
        place = model.place

        def placed(*given):
            found = place(*given)
            if isinstance(found, torch.Tensor):
                return found.detach()
            grid, shift = found if isinstance(found, tuple) else (found, None)
            fields = {field.name: getattr(grid, field.name).detach() for field in dataclasses.fields(grid)}
            grid = dataclasses.replace(grid, **fields)
            return (grid, shift) if isinstance(found, tuple) else grid

        model.place = placed
    logits, _ = rollout(model, images(), draw_noise(0, 0, (1, 8, model.steps), numbers=model.noises))
    logits.square().sum().backward()
    apart = {id(parameter) for parameter in model.attention_parameters()}
    assert apart
    for key, parameter in model.named_parameters():
        taught = parameter.grad is not None and bool(parameter.grad.norm() > 0)
        assert taught == (id(parameter) not in apart and not key.startswith("baseline_network")), key


@pytest.mark.parametrize("name", ["ram", "soft_ram"])
def test_their_rate_is_a_share_of_that_of_the_others(name):
    steps = {}
    for share in (1.0, 0.25):
        learner = make_learner(config(name, share), Noise())
        before = [parameter.detach().clone() for parameter in learner.model.parameters()]
        optimiser = learner.configure_optimizers()["optimizer"]
        for parameter in learner.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimiser.step()
        steps[share] = [old - new.detach() for old, new in zip(before, learner.model.parameters(), strict=True)]
        apart = {id(parameter) for parameter in learner.model.attention_parameters()}
    for parameter, whole, part in zip(learner.model.parameters(), steps[1.0], steps[0.25], strict=True):
        assert torch.allclose(part, whole * (0.25 if id(parameter) in apart else 1), atol=1e-6)


CONVNET = schema.ConvNet(filters=(4,), kernels=(5,), strides=(1,), pools=(2,), hidden=(8,), dropout=0.0)


@pytest.mark.parametrize("model", [CONVNET, schema.Ram(policy="random"), schema.Ram(policy="fixed")])
def test_a_model_without_attention_is_refused(model):
    given = dataclasses.replace(config("ram", 0.1), model=model, glimpses=schema.Glimpses(1, 12))
    says = f"optimizer.attention slows down what chooses where to look, and model={model.name} has no part"
    with pytest.raises(Refused, match=says):
        make_learner(given, Noise())
