"""A sweep that was broken off, and what resume_sweep runs of it."""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from statistics import fmean

import pytest

from attn_cli import cli, runs
from attn_cli.config import schema
from attn_cli.errors import Terminated
from attn_cli.learning import checkpoints
from attn_cli.pictures import curves, tables
from attn_cli.sweeps import jobs, report


@pytest.fixture
def checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run folder has a checkpoint that verifies."""
    monkeypatch.setattr(checkpoints, "newest_valid", lambda folder: folder / "last.ckpt")


@pytest.fixture
def process() -> Iterator[dict[str, object]]:
    """The note of a process that runs."""
    running = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    yield {"pid": running.pid, "host": platform.node(), "started": datetime.now().astimezone().isoformat()}
    running.kill()
    running.wait()


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_only_what_failed_or_never_ran_is_run(work, capsys) -> None:
    work.fates(s2="fail", s3="stop")
    assert work("seed=1,2,3,4", "glimpses=2") == 130
    assert [line[0] for line in work.ran()] == ["1", "2", "3"]
    assert f"Run what is missing: attn train -m resume_sweep={work.sweep()}" in capsys.readouterr().err
    work.fates()
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert work.ran() == [f"{seed} seed={seed} glimpses.count=2" for seed in (2, 3, 4)]
    assert [job["status"] for job in work.jobs()] == ["finished"] * 4
    out = capsys.readouterr().out
    assert "1 of 4 jobs are done" in out and "job 2 of 4 (job-001.json), 1 done, 1 failed" in out
    assert len((work.sweep() / "results.csv").read_text().splitlines()) == 5
    assert work(f"resume_sweep={work.sweep()}") == 0  # nothing left: only the table
    assert work.ran() == []


@pytest.mark.parametrize("fate", ["stop", "leave", "timeout"])
def test_a_job_that_was_cut_off_goes_on_in_its_run_folder(work, checkpoint, fate: str) -> None:
    work.fates(s2=fate)
    assert work("seed=1,2") != 0
    job = work.jobs()[1]
    assert job["status"] in ("interrupted", "left") and Path(job["run"], "config.yaml").is_file()
    work.ran()
    work.fates()
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert work.ran() == [f"2 resume={job['run']}"]  # no other words: they would be refused, and Lightning repeats them
    assert work.jobs()[1]["run"] == job["run"]


def test_runs_that_were_trained_together_go_on_alone(work, checkpoint, capsys) -> None:
    """One had finished, one has a checkpoint, the folder of the third is gone."""
    work.fates(s5="leave")
    assert work("seed=5", "trainer.parallel_seeds=3", "glimpses=2") == 1
    job = work.jobs()[0]
    first, second, third = map(runs.open_run, job["runs"])
    assert [run.config().seed for run in (first, second, third)] == [5, 6, 7]
    first.set_status("finished")
    figures = {"val_error": 1.0, "test_error": 4.0, "seconds": 1.0, "threads": 1}
    first.write_result({"run": str(first.path), "seed": 5, **figures})
    edit(second.path / "status.json", status="running", pid=2**22 + 1, host="elsewhere")
    shutil.rmtree(third.path)
    work.ran()
    work.fates()
    assert work(f"resume_sweep={work.sweep()}") == 0
    ran = work.ran()
    assert ran[0] == f"6 resume={second.path}" and ran[1].startswith("7 ") and len(ran) == 2
    assert "No run folder of this job has seed 7 and optimizer.lr" in capsys.readouterr().out
    job = work.jobs()[0]
    assert job["status"] == "finished" and job["runs"][:2] == [str(first.path), str(second.path)]
    assert job["run"] == " ".join(job["runs"]) and str(third.path) not in job["run"]
    results = [runs.open_run(run).result() for run in job["runs"]]
    assert job["result"]["val_error"] == fmean(result["val_error"] for result in results) != results[1]["val_error"]
    assert [(run["seed"], run["val_error"]) for run in job["result"]["each"]] == [(5, 1.0), (6, 16.0), (7, 17.0)]


def test_runs_that_were_trained_together_have_a_curve_each(work, monkeypatch) -> None:
    assert work("seed=5", "glimpses=2,3", "trainer.parallel_seeds=2") == 0
    for job in work.jobs():
        for run in job["runs"]:
            (Path(run) / "metrics.csv").write_text("")
    drawn: dict[str, Path] = {}
    monkeypatch.setattr(curves, "comparison", lambda metrics, path: drawn.update(metrics))
    assert report.finish(work.sweep()) == 0
    assert {path.parent.name for path in drawn.values()} == {path.name for path in Path("outputs").glob("digits-*")}
    assert set(drawn) == {f"seed={seed} glimpses.count={count}" for seed in (5, 6) for count in (2, 3)}


def test_of_runs_that_go_on_alone_one_may_fail(work, checkpoint) -> None:
    work.fates(s5="leave")
    assert work("seed=5", "trainer.parallel_seeds=3", "glimpses=2") == 1
    work.ran()
    work.fates(s6="refuse")
    assert work(f"resume_sweep={work.sweep()}") == 1
    assert [line[0] for line in work.ran()] == ["5", "6", "7"]
    job = work.jobs()[0]
    assert (job["status"], job["message"]) == ("failed", "1 of 3 runs failed; the first: no.")
    assert [runs.open_run(run).status()["status"] for run in job["runs"]].count("finished") == 2
    with (work.sweep() / "results.csv").open() as file:  # those that finished count
        told = [(row["status"], row["seed"], row["val_error"], row["message"]) for row in csv.DictReader(file)]
    assert told == [("finished", "5", "15.0", ""), ("finished", "7", "17.0", ""), ("failed", "5", "", job["message"])]
    (summary,) = tables.sweep_summary(report.table_rows(work.jobs()))
    assert (summary["val_error"], summary["seeds"], summary["status"]) == (16.0, 2, "2 finished, 1 failed")
    work.fates()
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert [line[:7] for line in work.ran()] == ["6 seed="]  # alone, from the beginning
    assert work.jobs()[0]["status"] == "finished" and len(work.jobs()[0]["runs"]) == 3
    assert work.jobs()[0]["result"]["threads"] == 1


def test_what_is_said_where_one_run_of_several_is_left(work, capsys) -> None:
    """A job of two runs of which one failed has the folder of the other alone."""
    config = schema.Config(trainer=schema.Trainer(parallel_seeds=2))
    first, second = config.alone()
    run = runs.create(first, "outputs")
    run.set_status("finished")
    run.write_result({"val_error": 1.0})
    assert jobs.going_on(config, [run.path]) == [{"val_error": 1.0}, second]
    assert capsys.readouterr().out == "No run folder of this job has seed 1 and optimizer.lr 0.002: a new one.\n"


def test_a_job_that_failed_starts_anew(work, checkpoint) -> None:
    work.fates(s2="fail")
    assert work("seed=1,2") == 1
    before = work.jobs()[1]["run"]
    work.fates()
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert "resume=" not in "".join(work.ran())
    assert work.jobs()[1]["run"] not in ("", before)


def test_without_a_checkpoint_a_job_starts_anew(work, capsys) -> None:
    work.fates(s1="leave")
    assert work("seed=1,2") == 1
    work.fates()
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert "There is no checkpoint in" in capsys.readouterr().out
    assert work.jobs()[0]["runs"] == [work.jobs()[0]["run"]]  # what was given up has no curve
    assert "resume=" not in "".join(work.ran())


def test_a_run_folder_of_other_settings_is_not_continued(work, checkpoint, capsys) -> None:
    work.fates(s1="leave")
    assert work("seed=1,2") == 1
    config = Path(work.jobs()[0]["run"]) / "config.yaml"
    config.write_text(config.read_text().replace("sigma: 0.1", "sigma: 0.2"))
    work.fates()
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert "was begun with other settings" in capsys.readouterr().out
    assert "resume=" not in "".join(work.ran())


def test_a_run_goes_on_with_its_own_threads(work, checkpoint) -> None:
    """A sweep on another machine may give its jobs others."""
    work.fates(s1="leave")
    assert work("seed=1,2", "trainer.threads=1") == 1
    run = Path(work.jobs()[0]["run"])
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("threads: 1", "threads: 7"))
    work.fates()
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert work.ran()[-1] == f"1 resume={run}"


@pytest.mark.parametrize(
    ("ended", "code"),
    [(KeyboardInterrupt(), 130), (Terminated(), 143), (SystemExit(5), 5), (ValueError("x"), 1), (None, 0)],
)
def test_the_exit_code_tells_how_a_sweep_ended(work, ended, code) -> None:
    assert work("seed=1,2") == 0
    assert report.finish(work.sweep(), ended) == code


def test_a_run_that_finished_before_its_job_was_noted_is_not_run_again(work) -> None:
    assert work("seed=1,2") == 0
    first = work.jobs()[0]
    edit(work.sweep() / "job-000.json", status="running", result=None, pid=2**22 + 1)
    work.ran()
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert work.ran() == []
    assert work.jobs()[0]["result"] == first["result"]


def test_a_run_left_on_another_machine_is_continued(work, checkpoint) -> None:
    work.fates(s1="leave")
    assert work("seed=1,2") == 1
    run = Path(work.jobs()[0]["run"])
    edit(run / "status.json", status="running", host="elsewhere")
    work.fates()
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert work.ran()[-1] == f"1 resume={run}"


def test_elsewhere_the_folder_to_go_to_is_named(work, checkpoint, capsys, monkeypatch, tmp_path: Path) -> None:
    """Recorded run folders are relative; a tree that is moved as a whole can still be resumed."""
    work.fates(s2="leave")
    assert work("seed=1,2") == 1
    (job,), sweep = work.jobs()[1:], work.sweep()
    work.ran()
    work.fates()
    before = (work.folder / sweep / "job-001.json").read_text()
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    assert work(f"resume_sweep={work.folder / sweep}") == 1
    error = capsys.readouterr().err
    assert f"was begun in {work.folder}, and" in error and f"`cd {work.folder}`" in error and error.count("\n") == 1
    assert (work.folder / sweep / "job-001.json").read_text() == before
    moved = work.folder.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    assert work(f"resume_sweep={sweep}") == 0
    assert (moved / "ran.txt").read_text() == f"2 resume={job['run']}\n"


def test_a_run_folder_that_is_gone_is_named(work, checkpoint, capsys) -> None:
    work.fates(s1="leave")
    assert work("seed=1,2") == 1
    run = work.jobs()[0]["run"]
    shutil.rmtree(run)
    work.fates()
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert f"job-000.json: there is no run folder {run} any more. Its run starts anew." in capsys.readouterr().out
    assert work.jobs()[0]["status"] == "finished" and work.jobs()[0]["run"] != run


def test_a_missing_note_is_a_missing_job(work) -> None:
    assert work("seed=1,2,3") == 0
    (work.sweep() / "job-001.json").unlink()
    work.ran()
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert work.ran() == ["2 seed=2"]


def test_the_same_jobs_in_other_words_are_accepted(work) -> None:
    work.fates(s2="fail")
    assert work("seed=1,2", "glimpses=2,3") == 1
    work.fates()
    work.ran()
    assert work("glimpses=3,2", "seed=range(1,3)", f"resume_sweep={work.sweep()}") == 0
    assert [line[0] for line in work.ran()] == ["2", "2"]
    assert [job["overrides"] for job in work.jobs()][1] == ["seed=1", "glimpses.count=3"]  # numbers stay as they were


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (["seed=1,2,3"], "(seed=3 only here)"),
        (["seed=1,4"], "(seed=2 only there, seed=4 only here)"),
        (["seed=1,2", "glimpses=2"], "only there, glimpses.count=2 seed=1; glimpses.count=2 seed=2 only here)"),
        (["seed=range(1,9)"], "seed=5 and 3 more only here"),
        (["hydra/sweeper=random", "seed=1,2"], "was begun with hydra/sweeper=grid, not random"),
    ],
)
def test_other_jobs_are_refused_with_the_difference(work, capsys, words: list[str], difference: str) -> None:
    work.fates(s2="fail")
    assert work("seed=1,2") == 1
    before = {path.name: path.read_bytes() for path in work.sweep().iterdir()}
    capsys.readouterr(), work.ran()
    assert work(*words, f"resume_sweep={work.sweep()}") == 1
    out, error = capsys.readouterr()
    assert error.startswith("attn train: ") and difference in error and error.count("\n") == 1 and out == ""
    assert {path.name: path.read_bytes() for path in work.sweep().iterdir()} == before
    assert work.ran() == []


def test_how_jobs_are_run_may_change(work) -> None:
    work.fates(s2="fail")
    assert work("seed=1,2") == 1
    work.fates()
    work.ran()
    assert work(f"resume_sweep={work.sweep()}", "hydra/launcher=basic") == 0
    assert work.ran() == ["2 seed=2"]


def test_flags_are_remembered(work, tmp_path: Path) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\nglimpses: {count: 9}\n")
    work.fates(s2="fail")
    assert work("--config-dir", str(tmp_path / "own"), "experiment=mine", "seed=1,2") == 1
    work.fates()
    assert work(f"resume_sweep={work.sweep()}") == 0
    assert f"--config-dir {tmp_path / 'own'} experiment=mine seed=1" in (work.sweep() / "best.txt").read_text()


def test_a_sweep_that_still_runs_is_refused(work, capsys, process) -> None:
    assert work("seed=1,2") == 0
    edit(work.sweep() / "sweep.json", **process)
    assert work(f"resume_sweep={work.sweep()}") == 1
    assert f"process {process['pid']} still runs the sweep" in capsys.readouterr().err


def test_a_running_job_without_its_process_or_time_is_refused(work, capsys) -> None:
    assert work("seed=1,2") == 0
    job = work.sweep() / "job-001.json"
    values = {**json.loads(job.read_text()), "status": "running"}
    for missing in ("started", "pid"):
        job.write_text(json.dumps({key: value for key, value in values.items() if key != missing}))
        capsys.readouterr()
        assert work(f"resume_sweep={work.sweep()}") == 1
        assert f"{job} is not a status file of a sweep; delete it" in capsys.readouterr().err


def test_a_job_that_still_runs_is_refused(work, capsys, process) -> None:
    """The sweep itself was killed, a worker goes on."""
    assert work("seed=1,2") == 0
    edit(work.sweep() / "job-001.json", status="running", **process)
    assert work(f"resume_sweep={work.sweep()}") == 1
    assert f"process {process['pid']} still runs a job, see {work.sweep()}/job-001.json" in capsys.readouterr().err


def test_a_process_of_another_machine_cannot_be_looked_for(work, capsys) -> None:
    assert work("seed=1,2") == 0
    path = work.sweep() / "job-001.json"
    edit(path, status="running", host="elsewhere")
    assert work(f"resume_sweep={work.sweep()}") == 1
    assert f'on elsewhere ran a job; if it is over, write null for "host" in {path}.' in capsys.readouterr().err
    edit(path, host=None, pid=2**22 + 1)
    assert work(f"resume_sweep={work.sweep()}") == 0


def test_a_number_taken_over_by_a_younger_process_does_not_count(work, process) -> None:
    assert work("seed=1,2") == 0
    edit(work.sweep() / "sweep.json", **{**process, "started": "2020-01-01T00:00:00+00:00"})
    assert work(f"resume_sweep={work.sweep()}") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "resume_sweep=outputs/sweeps/20260101-00000-aaaa"], "Did you mean '20260101-000000-aaaa'?"),
        (["-m", "resume_sweep=outputs"], "it has no sweep.json"),
        (["-m", "resume_sweep="], "resume_sweep takes one folder of a sweep"),
        (["-m", "resume_sweep=a", "resume_sweep=b"], "resume_sweep takes one folder of a sweep"),
        (["resume_sweep=outputs"], "resume_sweep=outputs is for a sweep: add -m."),
    ],
)
def test_folders_that_are_none(work, capsys, words: list[str], message: str) -> None:
    assert work("seed=1,2") == 0
    work.sweep().rename(work.sweep().with_name("20260101-000000-aaaa"))
    capsys.readouterr()
    assert cli.main(["train", *words]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 2}', "is of another version of attn (format 2, this one reads 1)"),
        ('{"format": 1}', "is not the plan of a sweep"),
        ("[1]", "is not the plan of a sweep"),
        ('{"format"', "cannot be read"),
    ],
)
def test_a_plan_of_another_version_or_damaged(work, capsys, content: str, message: str) -> None:
    assert work("seed=1,2") == 0
    (work.sweep() / "sweep.json").write_text(content)
    capsys.readouterr()
    assert work(f"resume_sweep={work.sweep()}") == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "change",
    [{"jobs": 5}, {"jobs": ["seed=1"]}, {"total": "many"}, {"flags": None}, {"pid": "1"}, {"started": "today"}],
)
def test_a_plan_of_other_types_is_refused(work, capsys, change: dict[str, object]) -> None:
    assert work("seed=1") == 0
    path = work.sweep() / "sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    capsys.readouterr()
    assert work(f"resume_sweep={work.sweep()}") == 1
    error = capsys.readouterr().err
    assert "is not the plan of a sweep" in error and error.count("\n") == 1


def test_another_command_is_refused(work, capsys) -> None:
    assert work("seed=1,2", "data.train_limit=640") == 0  # which only attn train has
    assert cli.main(["eval", "-m", f"resume_sweep={work.sweep()}"]) == 1
    assert "is a sweep of attn train, not of attn eval" in capsys.readouterr().err


def test_runs_are_announced_only_while_a_job_runs(work) -> None:
    assert work("seed=1,2") == 0
    assert runs.on_create == []


def test_a_folder_that_cannot_be_made(work, capsys) -> None:
    (work.folder / "outputs").write_text("a file")
    assert work("seed=1,2") == 1
    assert "set outputs=FOLDER" in capsys.readouterr().err
    assert set(os.listdir(work.folder)) == {"outputs", "fates.json"}
