"""conf/ composes, carries every key with the schema's default, and its experiments quote the papers rightly."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins

from attn_cli.commands import entry
from attn_cli.config import registry, schema
from attn_cli.config.fields import REQUIRED
from attn_cli.config.hydra_errors import choices

CONF = entry.conf_folder()
GROUPS = {
    "model": schema.MODELS,
    "data": schema.DATA,
    "scales": {"recommended": schema.Scales},
    "glimpses": {"fixed": schema.Glimpses},
    "trainer": dict.fromkeys(("auto", "cpu", "gpu", "ddp", "smoke"), schema.Trainer),
    "optimizer": dict.fromkeys(("adam", "adam_onecycle", "sgd"), schema.Optimizer),
    "logger": dict.fromkeys(("csv", "tensorboard", "wandb", "mlflow", "none"), schema.Logger),
}
FLAT = {command.config_name: command.config for command in entry.HYDRA_COMMANDS.values() if command.name != "train"}
CELLS = [name for name in choices(CONF, "experiment") if name != "demo"]  # which is no cell of a paper
BASELINES = {  # of RAM: published error in %, model, data, height of the images, the widths that make the cell
    "ram/table1a_fc256": (1.35, "fc", "mnist", 28, {"hidden": (256, 256)}),
    "ram/table1b_fc64": (7.56, "fc", "translated_mnist", 60, {"hidden": (64, 64)}),
    "ram/table1b_fc256": (3.7, "fc", "translated_mnist", 60, {"hidden": (256, 256)}),
    "ram/table1b_conv": (2.31, "convnet_1", "translated_mnist", 60, {"filters": (8,), "hidden": (256,)}),
    "ram/table1b_conv_16": (2.31, "convnet_1", "translated_mnist", 60, {"filters": (16,), "hidden": (256,)}),
    "ram/table2a_fc64": (28.96, "fc", "cluttered_mnist", 60, {"hidden": (64, 64)}),
    "ram/table2a_fc256": (13.2, "fc", "cluttered_mnist", 60, {"hidden": (256, 256)}),
    "ram/table2a_conv": (7.83, "convnet_1", "cluttered_mnist", 60, {"filters": (8,), "hidden": (256,)}),
    "ram/table2b_conv": (16.51, "convnet_1", "cluttered_mnist_100", 100, {"filters": (8,), "hidden": (86,)}),
}
PIECES = {"mnist": 0, "translated_mnist": 0, "cluttered_mnist": 4, "cluttered_mnist_100": 8}
OTHERS = {  # of RAM, in no table: model, data, what makes the cell
    "ram/catch": ("ram_catch", "catch", {}),
    "ram/stop_6": ("ram", "mnist", {"stop": "learned"}),
    "ram/scales_learned": ("ram", "mnist_scales", {"scale": "learned", "magnification": 1, "policy": "gaussian"}),
    "ram/scales_fixed": ("ram", "mnist_scales", {"scale": "fixed", "magnification": 4}),
    "ram/scales_retina": ("ram", "mnist_scales", {"scale": "fixed", "magnification": 1}),
    "ram/track": ("ram_lstm", "moving_mnist_track", {"core": "lstm"}),
}
EXPERIMENTS = [name for name in CELLS if name.startswith("ram/table") and name not in BASELINES]
DRAM = {  # published error in %, model, data, glimpses per target, and what else makes the cell
    "dram/first_digit": (None, "dram_mnist", "cluttered_mnist_100", 4, {}),
    "dram/near_pairs": (None, "dram_mnist", "mnist_pairs", 4, {}),
    "dram/table1_ram": (9, "ram", "mnist_pairs", 4, {}),
    "dram/table1_no_context": (7, "dram_mnist", "mnist_pairs", 4, {"context": "none"}),
    "dram/table1_dram": (5, "dram_mnist", "mnist_pairs", 4, {"context": "conv"}),
    "dram/table2_convnet": (3.2, "convnet_64_64_64_512", "mnist_sum", None, {}),
    "dram/table2_dram": (2.5, "dram_mnist", "mnist_sum", 4, {"context": "conv"}),
    "dram/table3_convnet": (4.11, "convnet_10", "svhn", None, {"dropout": 0.5, "dropout_layers": "all"}),
    "dram/table3_forward": (5.1, "dram", "svhn", 3, {"reader": "forward", "dropout": 0.0}),
    "dram/table3_backward": (3.9, "dram", "svhn", 3, {"reader": "backward", "dropout": 0.0}),
    "dram/table4_convnet": (5.60, "convnet_10", "svhn_110", None, {"dropout": 0.5, "dropout_layers": "all"}),
    "dram/table4_forward": (5.1, "dram", "svhn_110", 3, {"reader": "forward"}),
    "dram/table4_backward": (4.46, "dram", "svhn_110", 3, {"reader": "backward"}),
    "dram/table6_small": (5.1, "dram_small", "svhn", 3, {"dropout": 0.0}),
    "dram/table6_small_dropout": (4.6, "dram_small", "svhn", 3, {"dropout": 0.5}),
    "dram/sequence_forward": (None, "dram_small", "mnist_sequence", 3, {"reader": "forward", "samples": 4}),
    "dram/sequence_backward": (None, "dram_small", "mnist_sequence", 3, {"reader": "backward", "samples": 2}),
    "dram/sequence_convnet": (None, "convnet_10_small", "mnist_sequence", None, {}),
    "dram/sequence_110_forward": (None, "dram_small", "mnist_sequence_110", 3, {"reader": "forward", "samples": 4}),
    "dram/sequence_110_backward": (None, "dram_small", "mnist_sequence_110", 3, {"reader": "backward", "samples": 2}),
    "dram/section5_convnet": (5.5, "convnet_10", "svhn", None, {"dropout": 0.5, "dropout_layers": "hidden"}),
}

SSCI = "IEEE SSCI 2016"
READER = {"glimpse": "conv", "dropout": 0.5, "recurrent_dropout": 0.5, "pretrain_glimpse": 2, "noise": 0.1}
SOFT_RAM = {  # published error in % and where, model, data, glimpses and their size, what else makes the cell
    "soft_ram/table1_context": (1.80, SSCI, "soft_ram", "cluttered_mnist_100", (4, 12), {"context": "conv"}),
    "soft_ram/table1_no_context": (3.29, SSCI, "soft_ram", "cluttered_mnist_100", (4, 12), {"context": "none"}),
    "soft_ram/table1_draw_4": (4.18, "arXiv 1502.04623", "draw_reader", "cluttered_mnist_100", (4, 12), {}),
    "soft_ram/table1_draw_8": (3.36, "arXiv 1502.04623", "draw_reader", "cluttered_mnist_100", (8, 12), {}),
    "soft_ram/table2_pair": (4.3, SSCI, "soft_ram", "mnist_pairs", (4, 12), {"centre": "relative", "limit": 0.5}),
    "soft_ram/table2_sum": (2.55, SSCI, "soft_ram", "mnist_sum", (4, 12), {"centre": "relative", "limit": 0.5}),
    "soft_ram/table3_forward_64": (4.5, SSCI, "soft_ram", "svhn_64", (3, 12), {**READER, "reader": "forward"}),
    "soft_ram/table3_backward_64": (3.9, SSCI, "soft_ram", "svhn_64", (3, 12), {**READER, "reader": "backward"}),
    "soft_ram/table3_forward_128": (5.5, SSCI, "soft_ram", "svhn_128", (3, 12), {**READER, "reader": "forward"}),
    "soft_ram/table3_backward_128": (4.45, SSCI, "soft_ram", "svhn_128", (3, 12), {**READER, "reader": "backward"}),
    "soft_ram/figure4": (None, SSCI, "soft_ram", "svhn_64", (3, 12), {**READER, "pretrain_glimpse": 0}),
    "soft_ram/sequence_forward": (None, SSCI, "soft_ram", "mnist_sequence", (3, 12), {"reader": "forward"}),
    "soft_ram/sequence_backward": (None, SSCI, "soft_ram", "mnist_sequence", (3, 12), {"reader": "backward"}),
    "soft_ram/sequence_stn": (None, "arXiv 1506.02025", "stn", "mnist_sequence", (1, 24), {"transform": "affine"}),
    "soft_ram/track": (None, SSCI, "soft_ram", "moving_mnist_track", (20, 12), {"centre": "relative"}),
    "soft_ram/track_static": (None, SSCI, "soft_ram", "cluttered_mnist_100", (8, 12), {"centre": "relative"}),
    "soft_ram/table3_stn_64": (3.6, "arXiv 1506.02025", "stn", "svhn_64", (1, 32), {"transform": "affine"}),
    "soft_ram/table3_stn_128": (3.9, "arXiv 1506.02025", "stn", "svhn_128", (1, 32), {"transform": "affine"}),
}

RSAM = {  # published error in %, what makes the arm
    "rsam/figure3_both": (35.05, {"feedback": True, "down_sample": "conv"}),
    "rsam/figure3_no_feedback": (None, {"feedback": False, "down_sample": "conv"}),
    "rsam/figure3_no_down_sample": (None, {"feedback": True, "down_sample": "fc"}),
    "rsam/figure3_neither": (None, {"feedback": False, "down_sample": "fc"}),
    "rsam/figure4": (35.05, {"feedback": True, "down_sample": "conv"}),
}

BIRDS = {  # published error in %, model, data, what is composed with it, what else makes the step
    "birds/trunk": (None, "convnet_5", "folder", ("data.path=somewhere",), {"hidden": (1024, 1024)}),
    "birds/attention": (
        20.23,
        "soft_ram",
        "cub200",
        ("model.trunk_from=somewhere",),
        {"context": "none", "answer_from": "glimpse", "reset_every": 10, "resets": 10, "trunk_layers": 2},
    ),
    "birds/baseline": (21.43, "convnet_bn", "cub200", (), {"norm": True}),
}

# (arXiv 1406.6247, NIPS 2014) in % by table and glimpses; None where no number is at hand
PUBLISHED = {
    "ram/table1a": {
        2: (6.27, 3.79),
        3: (2.7, 1.51),
        4: (1.73, 1.54),
        5: (1.55, 1.34),
        6: (1.29, 1.12),
        7: (1.47, 1.07),
    },
    "ram/table1b": {4: (2.29, 1.54), 6: (1.86, 1.22), 8: (1.84, 1.20)},
    "ram/table2a": {4: (7.1, 4.96), 6: (5.88, 4.08), 8: (5.23, 4.04)},
    "ram/table2b": {4: (14.95, 9.41), 6: (11.58, None), 8: (10.83, 8.11)},
}
TASKS = {  # data, height, clutter, glimpse size, scales
    "ram/table1a": ("mnist", 28, 0, 8, 1),
    "ram/table1b": ("translated_mnist", 60, 0, 12, 3),
    "ram/table2a": ("cluttered_mnist", 60, 4, 12, 3),
    "ram/table2b": ("cluttered_mnist_100", 100, 8, 12, 4),
}


@pytest.fixture(scope="module", autouse=True)
def hydra_ready() -> Iterator[None]:
    Plugins.instance()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> schema.Config:
    return schema.load(compose("train", overrides=list(overrides)))


def raw(path: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / path).read_text(encoding="utf-8"))


def test_default_training_is_ram_on_digits_that_need_no_download() -> None:
    assert composed() == schema.Config(
        data=schema.Scenes(name="digits", source="digits"), glimpses=schema.Glimpses(6, 8), scales=schema.Scales(1)
    )


@pytest.mark.parametrize("group", GROUPS)
def test_groups_hold_exactly_the_known_names(group: str) -> None:
    assert set(choices(CONF, group)) == set(GROUPS[group])


def test_registry_and_schema_know_the_same_names() -> None:
    assert set(registry.MODELS) == set(schema.MODELS)
    assert set(registry.DATA) == set(schema.DATA)


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, names in GROUPS.items() for n in names])
def test_every_choice_carries_every_key_and_composes(group: str, name: str) -> None:
    cls = GROUPS[group][name]
    assert set(raw(f"{group}/{name}.yaml")) == {f.name for f in dataclasses.fields(cls)}
    path = ["data.path=somewhere"] if name in ("folder", "arrays") else []
    section = getattr(composed(f"{group}={name}", *path), group)
    assert type(section) is cls
    assert getattr(section, "name", name) == name


@pytest.mark.parametrize(("config_name", "cls"), FLAT.items())
def test_commands_carry_every_key_with_the_default(config_name: str, cls: type) -> None:
    written = raw(f"{config_name}.yaml")
    groups = {key for choice in written["defaults"] if isinstance(choice, dict) for key in choice if " " not in key}
    assert (set(written) | groups) - {"defaults", "hydra"} == {f.name for f in dataclasses.fields(cls)}
    given = {f.name: "given" for f in dataclasses.fields(cls) if f.default == REQUIRED}
    config = compose(config_name, overrides=[f"{name}={value}" for name, value in given.items()])
    assert schema.load_as(cls, config) == cls(**given)


@pytest.mark.parametrize("path", sorted(p.relative_to(CONF).as_posix() for p in CONF.rglob("*.yaml")))
def test_every_file_explains_itself_and_names_no_code(path: str) -> None:
    text = (CONF / path).read_text(encoding="utf-8")
    assert "_target_" not in text
    assert any(line.startswith("# ") and not line.startswith("# @") for line in text.splitlines()[:2])


@pytest.mark.parametrize("data", ["mnist", "translated_mnist", "cluttered_mnist_100", "mnist_pairs", "folder"])
def test_retina_follows_the_data_unless_told_otherwise(data: str) -> None:
    path = ["data.path=x"] if data == "folder" else []
    config = composed(f"data={data}", *path)
    assert (config.glimpses.size, config.scales.count) == (config.data.retina.size, config.data.retina.scales)
    config = composed(f"data={data}", *path, "glimpses.size=9", "scales.count=2")
    assert (config.glimpses.size, config.scales.count) == (9, 2)


def test_glimpses_follow_the_frames_unless_told_otherwise() -> None:
    assert composed("data=moving_digits_track").glimpses.count == 20
    assert composed("data=moving_digits_track", "data.frames=7").glimpses.count == 7
    assert composed("data=moving_digits_track", "glimpses.count=3").glimpses.count == 3
    assert composed("data=mnist").glimpses.count == composed("data=catch", "model=ram_catch").glimpses.count == 6


def test_same_scenes_from_either_source() -> None:
    for mnist in (name for name in registry.DATA if "mnist" in name):
        digits = mnist.replace("mnist", "digits")
        ours, theirs = raw(f"data/{digits}.yaml"), raw(f"data/{mnist}.yaml")
        assert (ours.pop("source"), theirs.pop("source")) == ("digits", "mnist")
        assert (ours.pop("name"), theirs.pop("name")) == (digits, mnist)
        assert ours == theirs


def test_there_is_an_experiment_for_every_cell() -> None:
    cells = [f"{table}_{n}" for table, row in PUBLISHED.items() for n in row]
    assert sorted([*cells, "ram/table1a_random"]) == sorted(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_the_papers_cells(name: str) -> None:
    table, _, glimpses = name.rpartition("_")
    config = composed(f"experiment={name}")
    assert config.experiment == name
    data, height, pieces, size, scales = TASKS[table]
    assert (config.data.name, config.data.height, config.data.pieces) == (data, height, pieces)
    assert (config.glimpses.size, config.scales.count) == (size, scales)
    assert config.glimpses.count == (1 if glimpses == "random" else int(glimpses))
    assert config.model.policy == ("random" if glimpses == "random" else "gaussian")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_headers_quote_the_paper(name: str) -> None:
    table, _, glimpses = name.rpartition("_")
    header = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").partition("defaults:")[0]
    for part in ("# paper: ", "# table: ", "# published: ", "# time: ", f"# command: attn train experiment={name}\n"):
        assert part in header
    arxiv, nips = (42.85, None) if glimpses == "random" else PUBLISHED[table][int(glimpses)]
    quoted = re.search(r"# published: ([\d.]+) % \(arXiv 1406.6247\); (?:([\d.]+) % \(NIPS 2014\)|no NIPS)", header)
    assert quoted is not None
    assert float(quoted[1]) == arxiv
    assert (float(quoted[2]) if quoted[2] else None) == nips


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_of_ram(name: str) -> None:
    published, model, data, height, widths = BASELINES[name]
    config = composed(f"experiment={name}")
    assert (config.experiment, config.model.name, config.data.name) == (name, model, data)
    assert (config.data.height, config.data.pieces) == (height, {"c": 4, "m": 0, "t": 0}[data[0]] * height // 50)
    assert {key: getattr(config.model, key) for key in widths} == widths
    assert config.model.dropout == 0
    header = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").partition("defaults:")[0]
    for part in ("# paper: ", "# table: ", "# time: ", f"# command: attn train experiment={name}\n"):
        assert part in header
    assert f"# published: {published} % (arXiv 1406.6247); no NIPS" in header


def test_every_cell_of_dram_is_listed() -> None:
    assert sorted(DRAM) == sorted(name for name in CELLS if name.startswith("dram/"))


@pytest.mark.parametrize("name", DRAM)
def test_cells_of_dram(name: str) -> None:
    published, model, data, glimpses, options = DRAM[name]
    config = composed(f"experiment={name}")
    assert (config.experiment, config.model.name, config.data.name) == (name, model, data)
    if glimpses is not None:
        assert (config.glimpses.count, config.glimpses.size, config.scales.count) == (glimpses, 12, 2)
    assert {key: getattr(config.model, key) for key in options} == options
    header = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").partition("defaults:")[0]
    for part in ("# paper: ", "# table: ", "# time: "):
        assert part in header
    assert re.search(rf"# command: attn train experiment={name}( \S+=[A-Z_]+)?\n", header)
    quoted = re.search(r"# published: ([\d.]+) % \(arXiv 1412.7755\)", header)
    assert (float(quoted[1]) if quoted else None) == published


def test_every_cell_is_of_a_known_paper() -> None:
    assert sorted([*EXPERIMENTS, *BASELINES, *OTHERS, *DRAM, *SOFT_RAM, *RSAM, *BIRDS]) == sorted(CELLS)


@pytest.mark.parametrize("name", OTHERS)
def test_cells_of_ram_in_no_table(name: str) -> None:
    model, data, options = OTHERS[name]
    config = composed(f"experiment={name}")
    assert (config.experiment, config.model.name, config.data.name) == (name, model, data)
    assert {key: getattr(config.model, key) for key in options} == options
    header = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").partition("defaults:")[0]
    for part in ("# paper: ", "# table: ", "# published: ", "# time: "):
        assert part in header
    assert re.search(rf"# command: attn train experiment={name}( \S+=[A-Z_]+)?\n", header)


def test_the_scale_experiments_differ_in_nothing_but_the_retina() -> None:
    learned, fixed, retina = (composed(f"experiment=ram/scales_{name}") for name in ("learned", "fixed", "retina"))
    for other, scales in ((fixed, 1), (retina, 3)):
        assert (other.data, other.optimizer, other.trainer) == (learned.data, learned.optimizer, learned.trainer)
        assert other.glimpses == learned.glimpses == schema.Glimpses(6, 12)
        assert (learned.scales.count, other.scales.count) == (1, scales)
        same = {"scale": learned.model.scale, "magnification": 1}
        assert dataclasses.replace(other.model, **same) == learned.model


@pytest.mark.parametrize("name", SOFT_RAM)
def test_cells_of_soft_ram(name: str) -> None:
    published, where, model, data, glimpses, options = SOFT_RAM[name]
    config = composed(f"experiment={name}")
    assert (config.experiment, config.model.name, config.data.name) == (name, model, data)
    assert (config.glimpses.count, config.glimpses.size, config.scales.count) == (*glimpses, 1)
    assert {key: getattr(config.model, key) for key in options} == options
    if name == "soft_ram/figure4":
        assert config.trainer.epochs == 25
    house_numbers = data.startswith("svhn") and model == "soft_ram"
    assert getattr(config.model, "mean_image", False) == house_numbers  # section IV.B
    assert (config.optimizer.name, config.optimizer.lr) == ("adam_onecycle", 2e-5 if name == "soft_ram/track" else 1e-3)
    header = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").partition("defaults:")[0]
    for part in ("# paper: ", "# table: ", "# time: "):
        assert part in header
    assert re.search(rf"# command: attn train (-m )?experiment={name}\b", header)
    quoted = re.search(rf"# published: ([\d.]+) % \({where}\)", header)
    assert (float(quoted[1]) if quoted else None) == published


@pytest.mark.parametrize("name", RSAM)
def test_cells_of_rsam(name: str) -> None:
    published, options = RSAM[name]
    config = composed(f"experiment={name}")
    assert (config.experiment, config.model.name, config.data.name, config.glimpses.count) == (
        name,
        "rsam",
        "cifar10",
        4,
    )
    assert {key: getattr(config.model, key) for key in options} == options
    sgd = config.optimizer
    assert (sgd.name, sgd.lr, sgd.momentum, sgd.weight_decay, sgd.decay) == ("sgd", 0.01, 0.9, 1e-4, 0.95)
    assert (config.trainer.batch_size, config.trainer.epochs) == (128, 20)
    header = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").partition("defaults:")[0]
    assert re.search(rf"# command: attn train (-m )?experiment={name}\n", header)
    quoted = re.search(r"# published: ([\d.]+) % \(arXiv 1705.01921\)", header)
    assert (float(quoted[1]) if quoted else None) == published


@pytest.mark.parametrize("name", BIRDS)
def test_steps_of_the_birds(name: str) -> None:
    published, model, data, given, options = BIRDS[name]
    config = composed(f"experiment={name}", *given)
    assert (config.experiment, config.model.name, config.data.name) == (name, model, data)
    assert {key: getattr(config.model, key) for key in options} == options
    if model == "soft_ram":
        assert config.model.trunk == composed("model=convnet_5").model
        assert (config.optimizer.name, config.optimizer.lr) == ("adam", 1e-4)
    header = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").partition("defaults:")[0]
    for part in ("# paper: ", "# table: Table IV, ", "# time: "):
        assert part in header
    words = "".join(f" {key}=[A-Z]+" for key in (word.partition("=")[0] for word in given))
    assert re.search(rf"# command: attn train experiment={name}{words}\n", header)
    quoted = re.search(r"# published: .*?([\d.]+) % \(IEEE SSCI 2016; ([\d.]+) % accuracy\)", header)
    assert (float(quoted[1]) if quoted else None) == published
    assert quoted is None or float(quoted[1]) + float(quoted[2]) == pytest.approx(100)


def test_debug_preset_is_short() -> None:
    trainer = composed("debug=fast").trainer
    assert (trainer.epochs, trainer.limit_train_steps) == (1, 5)


def test_conf_folder_is_absolute() -> None:
    assert CONF.is_absolute() and (CONF / "train.yaml").is_file()
    assert isinstance(CONF, Path)
