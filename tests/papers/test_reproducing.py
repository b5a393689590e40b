"""Which runs a table is missing, in which order, within which time, and what becomes of those that fail.

No model is trained here: tests/cli/test_reproduce.py does that.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from attn_cli import runs
from attn_cli.commands import reproducing
from attn_cli.commands.reproducing import Step, composed, expected, newest, plan, product, run_all, words
from attn_cli.errors import Refused
from attn_cli.papers import index, records, report
from attn_cli.papers.cells import Absent, Attend, Cell, Combine, Evaluate, Same, Table, Train
from attn_cli.papers.records import Record, add, load

TOY = Table(
    "toy/1",
    "Toy",
    (
        Cell("lesson", "Lesson", Train("demo", ("trainer.epochs=4",), cpu=40), lesson=True),
        Cell("long", "Long", Train("demo", ("optimizer.lr=0.001",), start="lesson", cpu=1000)),
        Cell("short", "Short", Train("demo", cpu=100)),
        Cell("many", "Many", Evaluate("long", ("mc_samples=2",), cpu=10)),
        Cell("both", "Both", Combine("long", "short", cpu=10)),
        Cell("unknown", "Unknown", Train("demo", ("optimizer.lr=0.002",))),
        Cell("none", "None", Absent()),
    ),
)
OTHER = Table("toy/2", "Other", (Cell("same", "Same", Same("toy/1/short")),))
CELLS = {cell.name: cell for cell in TOY.cells}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for table in (TOY, OTHER):
        monkeypatch.setitem(index.TABLES, table.name, table)
    return tmp_path


def step(cell: str, seed: int = 1) -> Step:
    return Step(TOY, CELLS[cell], seed)


def started(cell: str, status: str, epoch: int | None = None, seed: int = 1, **changes: Any) -> runs.Run:
    """A run folder of a training step as it is left behind."""
    given = words(step(cell, seed))
    assert given is not None
    run = runs.create(dataclasses.replace(composed("train", given), **changes))
    run.set_status(status, epoch=epoch)
    return run


def names(steps: list[Step]) -> list[str]:
    return [f"{step.cell.name} {step.seed}" for step in steps]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that were run; training leaves a finished run folder, everything the error 1 %."""
    found: list[str] = []

    def train(step: Step, given: list[str]) -> Record:
        found.append(f"{step.cell.name} {step.seed}")
        started(step.cell.name, "finished", seed=step.seed)
        return Record((step.seed,), 1.0)

    def evaluate(step: Step, given: list[str]) -> Record:
        found.append(f"{step.cell.name} {step.seed}")
        return Record((step.seed,), 1.0)

    monkeypatch.setattr(reproducing, "_train", train)
    monkeypatch.setattr(reproducing, "_evaluate", evaluate)
    return found


def test_all_cells_of_a_seed_come_before_the_next_and_lessons_before_what_needs_them() -> None:
    cells = [CELLS[name] for name in ("many", "short", "none")]
    assert names(plan(TOY, cells, seeds=2)) == [
        *("lesson 1", "long 1", "many 1", "short 1"),
        *("lesson 2", "long 2", "many 2", "short 2"),
    ]


def test_what_is_recorded_or_finished_is_not_run_again() -> None:
    started("lesson", "finished")
    add(TOY, "short", Record((1,), 3.0))
    cells = [CELLS[name] for name in ("long", "short")]
    assert names(plan(TOY, cells, seeds=2)) == ["long 1", "lesson 2", "long 2", "short 2"]
    add(TOY, "long", Record((1,), 3.0))
    assert names(plan(TOY, [CELLS["long"]], seeds=1)) == []
    # An evaluation needs the run itself, of which only the number is left.
    assert names(plan(TOY, [CELLS["many"]], seeds=1)) == ["long 1", "many 1"]


def test_seeds_that_were_trained_for_longer_are_not_averaged_with_others() -> None:
    add(TOY, "short", Record((1,), 3.0, epochs=99))
    with pytest.raises(Refused, match="toy/1/short is recorded after 99 epochs and is trained for [0-9]+ now: take "):
        plan(TOY, [CELLS["short"]], seeds=2)
    assert names(plan(TOY, [CELLS["short"]], seeds=1)) == []


def test_the_same_cell_of_another_table_is_run_there() -> None:
    assert plan(OTHER, OTHER.cells, seeds=1) == [step("short")]


def test_commands_name_the_runs_that_they_start_from() -> None:
    assert words(step("long")) is None  # its lesson is not there
    lesson = started("lesson", "finished")
    assert words(step("long")) == [
        *("experiment=demo", "trainer.threads=1", "trainer.precision=bf16", "optimizer.lr=0.001"),
        *(f"init_from={lesson.path}", "seed=1", "outputs=outputs/reproduce/toy/1/long/seed-1"),
    ]
    run = started("long", "finished")
    other = started("short", "finished")
    assert words(step("many")) == [f"run={run.path}", "mc_samples=2", "threads=1"]
    assert words(step("both")) == [f"forward={run.path}", f"backward={other.path}", "threads=1"]


def test_a_cell_may_start_from_the_mean_of_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("mean", "Mean", Train("demo", start=("toy/1/lesson", "toy/1/short")))
    table = Table("toy/3", "Mean", (cell,))
    monkeypatch.setitem(index.TABLES, table.name, table)
    assert names(plan(table, [cell], seeds=1)) == ["lesson 1", "short 1", "mean 1"]
    paths = [started(name, "finished").path for name in ("lesson", "short")]
    given = words(Step(table, cell, 1))
    assert given is not None and f"init_from=[{paths[0]},{paths[1]}]" in given
    assert composed("train", given).init_from == tuple(map(str, paths))
    assert report.how(cell.how) == "`experiment=demo`, init_from `toy/1/lesson` and `toy/1/short`"


def test_only_a_run_with_the_configuration_of_the_step_counts() -> None:
    started("short", "finished", optimizer=dataclasses.replace(composed("train", []).optimizer, lr=0.5))
    assert newest(step("short")) is None
    right = started("short", "interrupted")
    assert newest(step("short")) == right and product(step("short")) is None
    right.set_status("finished")
    assert product(step("short")) == right.path


def test_regions_count_while_their_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = Cell("boxes", "Boxes", Attend("short", ("regions=boxes",)), lesson=True)
    there = Step(dataclasses.replace(TOY, cells=(*TOY.cells, boxes)), boxes, 1)
    assert product(there) is None
    run = started("short", "finished")
    assert words(there) == [
        f"run={run.path}", "regions=boxes",
        f"output=outputs/reproduce/toy/1/boxes/seed-1/regions-{run.name}.h5", "threads=1",
    ]  # fmt: skip
    there.folder.mkdir(parents=True)
    output = there.folder / f"regions-{run.name}.h5"
    output.touch()
    assert product(there) == output
    shutil.rmtree(run.path)
    again = started("short", "finished")
    assert product(there) is None  # what the new run looks at is not what the old one looked at
    given = words(there)
    assert given is not None and f"run={again.path}" in given and f"output={output}" not in given


def test_an_interrupted_run_takes_the_rest_of_its_time() -> None:
    assert expected(step("short")) == 100
    started("short", "interrupted", epoch=15)  # of 20
    assert expected(step("short")) == pytest.approx(25)
    assert expected(step("unknown")) is None


def test_a_budget_leaves_out_what_does_not_fit(ran: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    steps = plan(TOY, [cell for cell in TOY.cells if cell.name != "both"], seeds=1)
    assert run_all(steps, budget=300, recorded=lambda: None) == 0
    assert ran == ["lesson 1", "short 1"]
    said = capsys.readouterr().out
    assert "toy/1/long, seed 1 is left for another time: about 17 min on a CPU." in said
    assert "toy/1/unknown, seed 1 is left for another time: its time is not known." in said
    assert "3 left of 5 runs: the same command goes on with them." in said
    assert {cell: [record.value for record in found] for cell, found in load(TOY).items()} == {
        "lesson": [1.0], "short": [1.0],
    }  # fmt: skip


def test_a_budget_is_used_up_by_what_was_run(monkeypatch: pytest.MonkeyPatch, ran: list[str]) -> None:
    clock = iter([0.0, 0.0, 90.0])  # at the beginning, before the first step, before the second
    monkeypatch.setattr(reproducing.time, "monotonic", lambda: next(clock))
    steps = [step("short", 1), step("short", 2)]
    assert run_all(steps, budget=150, recorded=lambda: None) == 0
    assert ran == ["short 1"]


def test_a_budget_too_small_for_one_run_tells_the_expected_time(ran: list[str]) -> None:
    steps = plan(TOY, [CELLS["long"], CELLS["short"]], seeds=2)
    with pytest.raises(
        Refused, match="A budget of 30 s is too small for one run: toy/1/lesson, seed 1 takes about 40 s"
    ):
        run_all(steps, budget=30, recorded=lambda: None)
    with pytest.raises(Refused, match="No time is known for toy/1/unknown, seed 1"):
        run_all([step("unknown")], budget=30, recorded=lambda: None)
    assert ran == []


def test_a_failure_takes_only_those_with_it_that_need_it(
    ran: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = reproducing._train

    def fails(step: Step, given: list[str]) -> Record:
        if step.cell.name == "long":
            raise Refused("the loss is not finite.")
        return train(step, given)

    monkeypatch.setattr(reproducing, "_train", fails)
    steps = plan(TOY, [CELLS[name] for name in ("many", "short")], seeds=1)
    written: list[int] = []
    assert run_all(steps, None, lambda: written.append(len(load(TOY)))) == 1
    assert ran == ["lesson 1", "short 1"] and written == [1, 2]
    said = capsys.readouterr().err
    assert "attn reproduce: toy/1/long, seed 1: the loss is not finite." in said
    assert "1 failed and 1 left of 4 runs" in said


def test_a_run_that_is_still_being_trained_is_left_alone() -> None:
    run = started("short", "running")  # by this very process
    with pytest.raises(Refused, match=f"{run.path} is still being trained by process {os.getpid()}"):
        reproducing._train(step("short"), words(step("short")) or [])


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("exit 1", 1, "ended with exit code 1"),
        ("kill -9 $$", 1, "was killed by signal 9"),
        ("exit 143", 143, "was stopped"),
    ],
)
def test_a_process_that_does_not_end_well(
    here: Path, monkeypatch: pytest.MonkeyPatch, script: str, code: int, says: str
) -> None:
    program = here / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(reproducing.sys, "executable", str(program))
    with pytest.raises(Refused, match=says) as refused:
        reproducing._train(step("short"), words(step("short")) or [])
    assert refused.value.exit_code == code
    assert records.load(TOY) == {}


def test_hardware_names_threads_and_processor_and_whether_it_was_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 1.2, 3.0))
    plain, busy = f"1 of {os.cpu_count()} cores, ", f"1 of {os.cpu_count()} busy cores, "
    for seconds, said in ((100, busy), (400, plain), (4000, busy)):
        assert reproducing.hardware("cpu", 1, seconds).startswith(said)
    assert reproducing.hardware("cpu", 3, 4000).startswith(f"3 of {os.cpu_count()} cores, ")


def test_a_run_that_outlives_the_command_is_not_trained_twice(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its start on, before there is a run folder: it has the lock of the command that started it."""
    program = here / "python"
    program.write_text(f"#!{sys.executable}\nimport time\nopen('started', 'w').close()\ntime.sleep(600)\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(reproducing.sys, "executable", str(program))
    children: list[subprocess.Popen[bytes]] = []

    class Killed(subprocess.Popen):  # type: ignore[type-arg]
        """The command is gone while its child starts."""

        def wait(self, timeout: float | None = None) -> int:
            children.append(self)
            while not Path("started").exists():
                time.sleep(0.05)
            raise MemoryError

    monkeypatch.setattr(reproducing.subprocess, "Popen", Killed)
    with pytest.raises(MemoryError):
        reproducing._train(step("short"), words(step("short")) or [])
    try:
        with pytest.raises(Refused, match="another process is about to train in outputs/reproduce/.*seed-1: wait"):
            reproducing._train(step("short"), words(step("short")) or [])
    finally:
        children[0].kill()
        os.waitpid(children[0].pid, 0)
    assert len(children) == 1


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ({"glimpses": 6}, ""),
        ({"glimpses": 6, "mean_glimpses": 3.816}, "at 3.82 glimpses"),
        ({"mean_glimpses": 6.0, "most_glimpses": 6}, ""),
        ({"mean_glimpses": 9.5, "most_glimpses": 18}, "at 9.50 glimpses"),
        (
            {"mean_glimpses": 20.0, "most_glimpses": 20, "gaze_on_target": 82.11},
            "gaze on the object in 82.1 % of the frames",
        ),
        (
            {"mean_glimpses": 4.0, "most_glimpses": 20, "gaze_on_target": 50.0},
            "at 4.00 glimpses; gaze on the object in 50.0 % of the frames",
        ),
    ],
)
def test_an_error_is_recorded_with_what_it_is_to_be_read_with(result, says):
    assert reproducing.remark(result) == says


def test_of_two_runs_of_a_step_the_later_counts() -> None:
    started("short", "failed")
    later = started("short", "finished")
    assert newest(step("short")) == later and product(step("short")) == later.path


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_run_without_a_checkpoint_is_begun_anew(checkpoint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    run, called = started("short", "failed"), []
    if checkpoint:
        (run.checkpoints / "last.ckpt").touch()
    monkeypatch.setattr(reproducing, "_attn", lambda given, handle: called.append(given))
    given = words(step("short")) or []
    with pytest.raises(Refused, match="has no result.json"):
        reproducing._train(step("short"), given)
    assert called == [["train", f"resume={run.path}"] if checkpoint else ["train", *given]]


FOUND = {
    "test_error": 4.00004, "val_error": 5.0, "test_error_interval": [3.1, 5.2], "images": 2000, "epochs": 20,
    "seconds": 61.04, "device": "cpu", "threads": 2, "commit": "0123456789abcdef", "glimpses": 6,
}  # fmt: skip


def test_the_record_of_a_run_says_what_its_result_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 1.0, 1.0))
    started("short", "finished").write_result(FOUND)
    command = "attn train experiment=demo trainer.threads=1 trainer.precision=bf16 seed=1"
    assert reproducing._train(step("short"), words(step("short")) or []) == Record(
        (1,), 4.0, None, 5.0, (3.1, 5.2), None, 2000, 20, 61.0, reproducing.hardware("cpu", 2, 61.0), "0123456", command
    )


@pytest.mark.parametrize(
    "commit, shown",
    [
        ("0123456789abcdef" * 4, "0123456"),
        ("0123456789abcdef-dirty", "0123456-dirty"),
        (None, ""),
        ("0123456789abcdef-dirty, abcdef0123456789", "0123456-dirty, abcdef0"),
    ],
)
def test_commits_are_recorded_short(commit: str | None, shown: str) -> None:
    assert reproducing.short(commit) == shown


def test_the_record_of_an_evaluation_has_its_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    from attn_cli.commands import evaluate

    started("lesson", "finished")
    run = started("long", "finished")
    gain = {"gain": 1.5, "gain_interval": [1.0, 2.0]}
    monkeypatch.setattr(evaluate, "run", lambda config: {**FOUND, **gain})
    record = reproducing._evaluate(step("many"), words(step("many")) or [])
    assert record is not None and (record.value, record.gain) == (4.0, (1.5, 1.0, 2.0))
    assert (record.interval, record.images, record.seconds) == ((3.1, 5.2), 2000, 61.0)
    assert record.command == f"attn eval run={run.path} mc_samples=2 threads=1"


def test_a_run_that_was_stopped_stops_all(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(step: Step, given: list[str]) -> Record:
        ran.append(step.cell.name)
        raise Refused("the run was stopped: the same command goes on from here.", 143)

    monkeypatch.setattr(reproducing, "_train", stopped)
    with pytest.raises(Refused, match="was stopped") as refused:
        run_all([step("lesson"), step("short")], None, lambda: None)
    assert refused.value.exit_code == 143 and ran == ["lesson"]
