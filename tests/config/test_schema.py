"""Every bound is enforced, every refusal names the key, and nothing unknown gets in."""

from __future__ import annotations

import copy
import dataclasses
import json
import typing
from typing import Any

import pytest

from attn_cli.config import command_sections, schema
from attn_cli.config.data_sections import Retina
from attn_cli.config.fields import REQUIRED
from attn_cli.config.model_sections import check_model
from attn_cli.errors import Refused

SECTIONS = {
    "model": schema.Ram,
    "data": schema.Scenes,
    "scales": schema.Scales,
    "glimpses": schema.Glimpses,
    "trainer": schema.Trainer,
    "optimizer": schema.Optimizer,
    "logger": schema.Logger,
    "": schema.Config,
}
FLAT = (command_sections.Evaluate, command_sections.McAverage, command_sections.Show, command_sections.Bench)


@pytest.fixture
def values() -> dict[str, Any]:
    return schema.to_dict(schema.Config())


def put(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(values)
    *path, last = key.split(".")
    place = changed
    for part in path:
        place = place[part]
    place[last] = value
    return changed


def bounded_keys() -> list[Any]:
    found = []
    for section, cls in [*SECTIONS.items(), ("data.retina", Retina)]:
        for field in dataclasses.fields(cls):
            key = f"{section}.{field.name}" if section else field.name
            if "low" in field.metadata:
                found.append(pytest.param(key, field.metadata, id=key))
    return found


@pytest.mark.parametrize(("key", "bounds"), bounded_keys())
def test_every_bound_is_enforced_and_named(values: dict[str, Any], key: str, bounds: dict[str, Any]) -> None:
    beyond = [bounds["high"] * 2 + 1, bounds["low"] if bounds["above"] else bounds["low"] - 1]
    for value in beyond:
        with pytest.raises(Refused, match=rf"^{key}(\[0\])? must be (above|at least) .* and at most .*, not "):
            schema.load(put(values, key, value))


def test_there_are_bounds_at_all() -> None:
    assert len(bounded_keys()) > 30


def test_every_number_is_bounded() -> None:
    """A width of 10⁹ must never reach an allocator."""
    for cls in {*SECTIONS.values(), Retina, schema.Folder, schema.Arrays, *FLAT}:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            kinds = typing.get_args(hints[field.name]) or (hints[field.name],)
            if int in kinds or float in kinds:
                assert "high" in field.metadata, f"{cls.__name__}.{field.name}"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model.hidden", 10**9, "model.hidden must be at least 1 and at most 4096, not 1000000000."),
        ("model.hidden", "wide", "model.hidden must be a whole number, not 'wide'."),
        ("model.hidden", 2.5, "model.hidden must be a whole number, not 2.5."),
        ("model.hidden", True, "model.hidden must be a whole number, not True."),
        ("model.hidden", None, "model.hidden must be a whole number, not None."),
        ("model.hidden", [1], "model.hidden must be a whole number, not [1]."),
        ("model.sigma", float("nan"), "model.sigma must be a finite number, not nan."),
        ("model.sigma", 10**400, "model.sigma must be a finite number, not inf."),
        ("model.sigma", 0, "model.sigma must be above 0 and at most 2, not 0.0."),
        ("model.core", "lstn", "model.core has no choice 'lstn'. Did you mean 'lstm'?"),
        ("model.core", None, "model.core has no choice None."),
        ("model.sigmaa", 1, "model.sigmaa is not a known key. Did you mean 'model.sigma'?"),
        ("model._target_", "os.system", "model._target_ is not a known key."),
        ("model._instantiator", {}, "model._instantiator is not a known key."),
        ("_target_", "os.system", "_target_ is not a known key."),
        ("data.retina.sise", 8, "data.retina.sise is not a known key. Did you mean 'data.retina.size'?"),
        ("data.root", {"_target_": "torch.load"}, "data.root must be text or null"),
        ("data.translate", "yes", "data.translate must be true or false, not 'yes'."),
        ("data.retina", 8, "data.retina must be a group of keys, not 8."),
        ("data.name", "mnits", "data=mnits is not available. Did you mean 'mnist'"),
        (
            "model.name",
            "os:system",
            "model=os:system is not available. Valid: convnet_1, convnet_10, convnet_10_small, convnet_5, "
            "convnet_64_64_64_512, convnet_bn, dram, dram_mnist, dram_small, draw_reader, fc, ram, ….",
        ),
        ("model", "ram", "model must be a group of keys, not 'ram'."),
        ("trainr", {}, "trainr is not a known key. Did you mean 'trainer'?"),
        ("seed", -1, "seed must be at least 0"),
        ("outputs", 3, "outputs must be text, not 3: write outputs='\"3\"'."),
    ],
)
def test_refusals_say_what_is_wrong(values: dict[str, Any], key: str, value: Any, says: str) -> None:
    with pytest.raises(Refused) as refused:
        schema.load(put(values, key, value))
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.baseline": "leave_one_out", "model.samples": 1}, "needs model.samples of at least 2, not 1"),
        ({"trainer.devices": 2, "trainer.batch_size": 33}, "must be a multiple of trainer.devices=2"),
        ({"trainer.parallel_seeds": 2, "trainer.devices": 2}, "trainer.parallel_seeds is for one device"),
        ({"trainer.parallel_seeds": 2, "logger.name": "wandb"}, "logger=wandb follows one run"),
        ({"trainer.parallel_lrs": [0.1, 0.2], "trainer.devices": 2}, "trainer.parallel_lrs is for one device"),
        ({"trainer.parallel_lrs": [0.1, 0.2], "trainer.strategy": "ddp"}, "and leave trainer=ddp out"),
        ({"trainer.parallel_seeds": 2, "optimizer.attention": 0.1}, "trainer.parallel_seeds trains all parts"),
        ({"optimizer.attention": 0}, "optimizer.attention"),
        ({"trainer.parallel_lrs": [0.1]}, "needs two learning rates at least; for one alone set optimizer.lr=0.1"),
        ({"trainer.parallel_lrs": [0.1, 0.2, 0.1]}, "trainer.parallel_lrs has a learning rate twice"),
        ({"trainer.parallel_lrs": [0.1, -0.2]}, "trainer.parallel_lrs"),
        (
            {"trainer.parallel_lrs": [0.1, 0.2], "trainer.parallel_seeds": 33},
            "trainer.parallel_seeds=33 with 2 learning rates are 66 runs, more than 64",
        ),
        (
            {"trainer.parallel_seeds": 2, "seed": 2**32 - 1},
            "seed=4294967295 leaves no room for trainer.parallel_seeds=2",
        ),
        ({"optimizer.nesterov": True}, "optimizer.nesterov is for optimizer=sgd"),
        ({"optimizer.decay": 0.9}, "optimizer.decay is for optimizer=sgd"),
        ({"optimizer.momentum": 0.5}, "optimizer.momentum is for optimizer=sgd"),
        ({"optimizer.name": "sgd"}, "set optimizer.warmup=0"),
        ({"optimizer.name": "adam"}, "optimizer.warmup is for optimizer=adam_onecycle; optimizer=adam does not use it"),
        (
            {"optimizer.name": "sgd", "optimizer.warmup": 0, "optimizer.momentum": 0, "optimizer.nesterov": True},
            "needs optimizer.momentum above 0",
        ),
    ],
)
def test_keys_that_do_not_go_together(values: dict[str, Any], changes: dict[str, Any], says: str) -> None:
    for key, value in changes.items():
        values = put(values, key, value)
    with pytest.raises(Refused, match=says):
        schema.load(values)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (schema.Dram(glimpse="fc", convolutions="separate"), "model.convolutions=separate is for model.glimpse=conv"),
        (schema.SoftRam(pretrain_glimpse=2), "model.pretrain_glimpse is for model.glimpse=conv"),
        (schema.SoftRam(repulsion=5), "model.repulsion=5 is for model.centre=relative: leave it out"),
        (schema.SoftRam(repulsion_width=5), "model.repulsion_width=5 is for model.centre=relative"),
        (schema.SoftRam(repulsion_step=1), "model.repulsion_step=1 is for model.centre=relative"),
        (
            schema.SoftRam(centre="relative", repulsion=0, repulsion_width=5),
            "=5 is for a model with model.repulsion: l",
        ),
        (schema.SoftRam(context="none", coarse=40), "model.coarse=40 is for a model with a context network: leave"),
        (schema.SoftRam(filters=(8, 8, 8, 8, 8)), r"model.filters=\[8, 8, 8, 8, 8\] is for model.glimpse=conv: with"),
        (schema.SoftRam(resets=3), "model.resets=3 is for a model with model.reset_every"),
        (schema.SoftRam(trunk_layers=3), "model.trunk_layers=3 is for a model with a trunk"),
        (schema.SoftRam(filters=(4, 4, 4, 4)), "model.filters must be three or five numbers"),
        (schema.Dram(filters=(4,) * 5), "model.filters must be three numbers"),
        (schema.Ram(first="learned", policy="fixed"), "needs a policy that learns, not model.policy=fixed"),
        (schema.Ram(first="learned", policy="random"), "needs a policy that learns, not model.policy=random"),
        (schema.Ram(first="learned", stop="learned"), "model.first=learned does not go together with model.stop"),
    ],
)
def test_options_of_a_model_that_do_not_go_together(model: Any, says: str) -> None:
    with pytest.raises(Refused, match=says):
        check_model(model)


def test_leave_one_out_with_two_samples_is_accepted(values: dict[str, Any]) -> None:
    assert schema.load(put(put(values, "model.baseline", "leave_one_out"), "model.samples", 2)).model.samples == 2


def test_shares_that_leave_nothing_to_train_on() -> None:
    values = schema.to_dict(schema.Config(data=schema.Folder(path="x", validation_share=0.5, test_share=0.5)))
    with pytest.raises(Refused, match="nothing is left to train on"):
        schema.load(values)


@pytest.mark.parametrize("name", ["folder", "arrays"])
def test_own_data_needs_its_path(values: dict[str, Any], name: str) -> None:
    for section in ({"name": name}, {"name": name, "path": REQUIRED}):
        with pytest.raises(Refused, match="data.path must be given"):
            schema.load({**values, "data": section})
    assert schema.load({**values, "data": {"name": name, "path": "here"}}).data.path == "here"


@pytest.mark.parametrize("missing", ["model", "data"])
def test_model_and_data_must_be_chosen(values: dict[str, Any], missing: str) -> None:
    del values[missing]
    with pytest.raises(Refused, match=f"^{missing} must be chosen: write {missing}=NAME"):
        schema.load(values)


def test_to_dict_is_the_inverse_of_load(values: dict[str, Any]) -> None:
    config = schema.load(values)
    assert config == schema.Config()
    assert schema.load(json.loads(json.dumps(schema.to_dict(config)))) == config
    own = schema.Config(data=schema.Arrays(path="a.npz", grey=True), model=schema.Ram(name="ram_lstm", core="lstm"))
    assert schema.load(json.loads(json.dumps(schema.to_dict(own)))) == own


def test_a_configuration_from_before_a_key_existed_takes_its_default(values: dict[str, Any]) -> None:
    del values["model"]["grid"], values["trainer"]["limit_train_steps"]
    assert schema.load(values) == schema.Config()


def test_a_folder_that_a_shell_completed_is_the_same_one(values: dict[str, Any]) -> None:
    """Runs are compared by their configuration."""
    plain, completed = (schema.load(put(values, "init_from", [f"outputs/one{end}", "/"])) for end in ("", "/"))
    assert plain == completed and completed.init_from == ("outputs/one", "/")


def test_names_that_yaml_reads_as_something_else(values: dict[str, Any]) -> None:
    """YAML 1.1 reads `on` as true and `32` as a number."""
    trainer = schema.load(put(put(values, "trainer.compile", True), "trainer.precision", 32)).trainer
    assert (trainer.compile, trainer.precision) == ("on", "32")
    assert schema.load(put(values, "trainer.compile", False)).trainer.compile == "off"


def test_whole_numbers_serve_as_numbers(values: dict[str, Any]) -> None:
    sigma = schema.load(put(values, "model.sigma", 1)).model.sigma
    assert sigma == 1.0 and isinstance(sigma, float)


def test_lists() -> None:
    assert schema.load_as(command_sections.Show, {"images": 3}).images == 3
    assert schema.load_as(command_sections.Show, {"images": [3, 5]}).images == (3, 5)
    assert schema.load_as(command_sections.Bench, {"shapes": "28x28"}).shapes == ("28x28",)
    for bad in (0, []):
        with pytest.raises(Refused, match="^images must be at least 1"):
            schema.load_as(command_sections.Show, {"images": bad})
    with pytest.raises(Refused, match=r"^images\[1\] must be at least 0"):
        schema.load_as(command_sections.Show, {"images": [0, -1]})
    with pytest.raises(Refused, match=r"^shapes\[0\] has no choice '28'"):
        schema.load_as(command_sections.Bench, {"shapes": ["28"]})
    with pytest.raises(Refused, match="^shapes must name at least one"):
        schema.load_as(command_sections.Bench, {"shapes": []})
    with pytest.raises(Refused, match="^mc_samplse is not a known key. Did you mean 'mc_samples'"):
        schema.load_as(command_sections.Evaluate, {"mc_samplse": 1})


@pytest.mark.parametrize(("key", "value", "needed"), [("average", "probabilities", 1), ("focus_size", 40, True)])
@pytest.mark.parametrize("cls", [command_sections.Evaluate, command_sections.Combine])
def test_settings_of_evaluations_that_would_change_nothing(cls: type, key: str, value: Any, needed: Any) -> None:
    given = {"forward": "a", "backward": "b"} if cls is command_sections.Combine else {}
    other = "focus" if needed is True else "mc_samples"
    with pytest.raises(Refused, match=f"^{key}={value} is for .* add {other}="):
        schema.load_as(cls, {**given, key: value})
    assert getattr(schema.load_as(cls, {**given, key: value, other: needed}), key) == value
