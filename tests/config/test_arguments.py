"""Words as a person types them, as words that Hydra takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from attn_cli.config import arguments, command_sections, schema
from attn_cli.errors import Refused


def words(line: list[str], config: type = schema.Config) -> list[str]:
    return arguments.parse(line, config).words()


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        ("glimpses=6", "glimpses.count=6"),
        ("glimpses=12", "glimpses.count=12"),
        ("+glimpses=6", "glimpses.count=6"),
        ("++scales=3", "scales.count=3"),
        ("glimpses=2,4,6", "glimpses.count=2,4,6"),
        ("glimpses=2, 4", "glimpses.count=2, 4"),
        ("glimpses=range(2,8)", "glimpses.count=range(2,8)"),
        ("glimpses=int(interval(2,8))", "glimpses.count=int(interval(2,8))"),
        ("glimpses=tag(log,int(interval(2,8)))", "glimpses.count=tag(log,int(interval(2,8)))"),
        ("glimpses=range(start=2,stop=8,step=2)", "glimpses.count=range(start=2,stop=8,step=2)"),
        ("glimpses=choice(2,4)", "glimpses.count=choice(2,4)"),
        ("glimpses=shuffle(range(1,4))", "glimpses.count=shuffle(range(1,4))"),
        ("glimpses=sort(3,1,reverse=true)", "glimpses.count=sort(3,1,reverse=true)"),
        ("glimpses=0", "glimpses.count=0"),
        ("glimpses=-1", "glimpses.count=-1"),
        ("glimpses=2.5", "glimpses.count=2.5"),
        ("scales=1,2", "scales.count=1,2"),
    ],
)
def test_numbers_become_values_of_their_group(typed: str, understood: str) -> None:
    assert arguments.number_as_value(typed) == understood


@pytest.mark.parametrize(
    "typed",
    [
        "glimpses=fixed",
        "glimpses=range",
        "glimpses=fixed,6",
        "glimpses=v2",
        "glimpses.count=6",
        "glimpses.size=8",
        "glimpses=",
        "seed=6",
        "my_glimpses=6",
        "data.scales=3",
        "model=ram",
    ],
)
def test_names_and_other_keys_stay(typed: str) -> None:
    assert arguments.number_as_value(typed) == typed


def test_flags_come_first_whatever_the_order() -> None:
    assert words(["model=ram", "-m", "glimpses=2,4", "seed=1,2"]) == [
        "--multirun",
        "model=ram",
        "glimpses.count=2,4",
        "seed=1,2",
    ]
    assert words(["data=mnist", "--cfg", "job", "seed=1", "-p", "model"]) == [
        "--cfg",
        "job",
        "--package",
        "model",
        "data=mnist",
        "seed=1",
    ]
    assert words(["--config-dir=mine", "a=1"]) == ["--config-dir", "mine", "a=1"]
    assert words(["a=1", "--info"]) == ["--info", "a=1"]
    assert words(["--info", "defaults", "a=1"]) == ["--info", "defaults", "a=1"]


def test_long_flags_become_keys() -> None:
    assert words(["--mc-samples", "10", "run=x"], command_sections.Evaluate) == ["mc_samples=10", "run=x"]
    assert words(["--mc-samples=10"], command_sections.Evaluate) == ["mc_samples=10"]
    assert words(["--gif"], command_sections.Show) == ["gif=true"]
    assert words(["--gif=false", "--images", "[3,5]"], command_sections.Show) == ["gif=false", "images=[3,5]"]
    assert words(["--seed", "3", "--resume", "outputs/a-b_1"]) == ["seed=3", "resume=outputs/a-b_1"]


@pytest.mark.parametrize(
    "path",
    ["my runs, (a=b)", "it's", 'say "so"', "end\\", '\\"', "~/runs", "2024", "-3", ".5", "1e5", "1_0", "nan", "True"],
)
def test_paths_are_quoted_for_the_shell_and_for_hydra(path: str) -> None:
    (word,) = shlex.split(arguments.pasted("resume", path))
    assert OverridesParser.create().parse_override(word).value() == path
    assert words(["--resume", path]) == [word]


def test_plain_paths_are_pasted_as_they_are() -> None:
    for path in ("outputs/digits-ram-6g-20261130-025246-3248", "/tmp/a.b/c_d", "../2024"):
        assert arguments.pasted("resume", Path(path)) == f"resume={path}"


def test_flag_values_are_quoted_for_hydra_unless_they_sweep() -> None:
    assert words(["--run", "my runs, new"], command_sections.Evaluate) == ['run="my runs, new"']
    assert words(["--run", "it's"], command_sections.Evaluate) == ['run="it\'s"']
    assert words(["-m", "--run", "a,b"], command_sections.Evaluate) == ["--multirun", "run=a,b"]


@pytest.mark.parametrize(
    ("typed", "config", "says"),
    [
        (["--mc-sample", "1"], command_sections.Evaluate, "There is no flag --mc-sample. Did you mean '--mc-samples'"),
        (["--epochs", "4"], schema.Config, "There is no flag --epochs. Write trainer.epochs=VALUE."),
        (["--model", "ram"], schema.Config, "There is no flag --model. Write model=NAME."),
        (["--cfg"], schema.Config, "--cfg needs a value: job, hydra, all."),
        (["--cfg", "jobs"], schema.Config, "--cfg has no choice 'jobs'. Did you mean 'job'?"),
        (["--mc-samples"], command_sections.Evaluate, "--mc-samples needs a value."),
        (["--seed", "--resume", "x"], schema.Config, "--seed needs a value."),
        (["--multirun=yes"], schema.Config, "--multirun takes no value."),
        (["-m", "--cfg", "job"], schema.Config, "--multirun and --cfg do not go together."),
        (["mnist"], schema.Config, "'mnist' is neither a flag nor KEY=VALUE."),
        (["--experimental-rerun", "evil.pickle"], schema.Config, "There is no flag --experimental-rerun."),
    ],
)
def test_refused(typed: list[str], config: type, says: str) -> None:
    with pytest.raises(Refused) as refused:
        arguments.parse(typed, config)
    assert str(refused.value).startswith(says)


def test_flags_are_not_abbreviated() -> None:
    """--mul for --multirun would change meaning when a flag is added."""
    with pytest.raises(Refused):
        arguments.parse(["--mul"], schema.Config)


def test_deletions_pass() -> None:
    assert words(["~model.sigma"]) == ["~model.sigma"]
