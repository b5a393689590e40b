"""Run folders: unique, found again, whole after faults, told truthfully."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from attn_cli import files, runs
from attn_cli.commands import runs as command
from attn_cli.config import schema
from attn_cli.errors import Refused
from attn_cli.sweeps import plan

CONFIG = schema.Config()


def edit_status(run: runs.Run, **values: object) -> None:
    path = run.path / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_folder_has_the_promised_name_and_content(tmp_path: Path) -> None:
    run = runs.create(CONFIG, tmp_path)
    assert re.fullmatch(r"mnist-ram-6g-\d{8}-\d{6}-[0-9a-f]{4}", run.name)
    assert {p.name for p in run.path.iterdir()} == {"config.yaml", "status.json", "checkpoints", "pictures"}
    assert run.config() == CONFIG
    status = run.status()
    assert set(status) >= {"status", "pid", "started", "ended", "message", "epoch", "step"}
    assert (status["status"], status["pid"], status["ended"]) == ("running", os.getpid(), None)


def test_three_processes_in_one_second_get_three_folders(tmp_path: Path) -> None:
    code = (
        "import sys, time; from attn_cli import runs; from attn_cli.config import schema\n"
        "while time.time() < float(sys.argv[2]): pass\n"
        "for _ in range(50): runs.create(schema.Config(), sys.argv[1])"
    )
    start = str(time.time() + 3)
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), start]) for _ in range(3)]
    assert [p.wait(timeout=60) for p in processes] == [0, 0, 0]
    found = runs.all_runs(tmp_path)
    assert len(found) == 150
    by_second = {run.name.rpartition("-")[0] for run in found}
    assert len(by_second) < 150  # they really shared seconds
    assert {run.status()["pid"] for run in found} == {p.pid for p in processes}


def test_importing_runs_does_not_import_torch() -> None:
    code = "import sys, attn_cli.runs, attn_cli.commands.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_killed_run_is_shown_as_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from attn_cli import runs; from attn_cli.config import schema\n"
        "runs.create(schema.Config(), sys.argv[1]); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    (run,) = runs.all_runs(tmp_path)
    assert run.status()["status"] == "running"
    process.kill()
    time.sleep(0.2)  # dead and not yet waited for: a zombie does not run
    assert run.status()["status"] == "killed"
    process.wait()
    assert run.status()["status"] == "killed"
    run.set_status("failed", "out of memory")
    assert run.status()["status"] == "failed"


def test_reused_process_number_is_not_the_run(tmp_path: Path) -> None:
    run = runs.create(CONFIG, tmp_path)
    assert run.status()["status"] == "running"
    edit_status(run, started="2001-01-01T00:00:00+00:00")  # this process began later than that
    assert run.status()["status"] == "killed"


def test_a_run_that_is_taken_up_again_by_a_process_of_the_same_number_runs(tmp_path: Path) -> None:
    run = runs.create(CONFIG, tmp_path)
    began = run.status()["started"]
    run.set_status("running", epoch=1)
    assert run.status()["started"] == began
    for changes in ({"status": "interrupted"}, {"status": "running"}, {"host": "elsewhere"}):
        edit_status(run, started="2001-01-01T00:00:00+00:00", **changes)  # before this process, as in a new container
        run.set_status("running")
        assert run.status()["status"] == "running" and run.status()["started"] >= began


@pytest.mark.parametrize("pid", [None, "12", -1, 0, 2**70])
def test_nonsense_pid_is_not_alive(tmp_path: Path, pid: object) -> None:
    run = runs.create(CONFIG, tmp_path)
    edit_status(run, pid=pid)
    assert run.status()["status"] == "killed"


def test_run_on_another_machine_is_believed(tmp_path: Path, ended_pid: int) -> None:
    run = runs.create(CONFIG, tmp_path)
    edit_status(run, pid=ended_pid, host="elsewhere")
    assert run.status()["status"] == "running"
    with pytest.raises(Refused, match=f"process {ended_pid} of elsewhere: if that is gone, delete .*status.json"):
        run.check_idle()
    (run.path / "status.json").unlink()
    run.check_idle()


def test_folder_without_status_is_killed(tmp_path: Path) -> None:
    run = runs.create(CONFIG, tmp_path)
    (run.path / "status.json").unlink()
    assert run.status()["status"] == "killed"


@pytest.mark.parametrize("text", ["{}", '{"status": null}', '{"status": ["running"]}', '{"status": "done"}'])
def test_file_without_a_known_status_is_refused_and_named(tmp_path: Path, text: str) -> None:
    run = runs.create(CONFIG, tmp_path)
    (run.path / "status.json").write_text(text)
    with pytest.raises(Refused, match=r"status\.json has none of the statuses running, .*: delete or restore it\."):
        run.status()
    with pytest.raises(Refused, match="no finished run"):
        runs.latest(tmp_path)


def test_status_keeps_start_epoch_and_step(tmp_path: Path) -> None:
    run = runs.create(CONFIG, tmp_path)
    started = run.status()["started"]
    run.set_status("running", epoch=3, step=40)
    run.set_status("interrupted", "Ctrl-C")
    status = run.status()
    assert (status["started"], status["epoch"], status["step"]) == (started, 3, 40)
    assert datetime.fromisoformat(status["ended"]) >= datetime.fromisoformat(started)
    with pytest.raises(ValueError):
        run.set_status("done")


def test_resumed_run_takes_the_new_process_and_time(tmp_path: Path, ended_pid: int) -> None:
    run = runs.create(CONFIG, tmp_path)
    edit_status(run, pid=ended_pid, started="2001-01-01T00:00:00+00:00", step=7)
    assert run.status()["status"] == "killed"
    run.set_status("running")
    status = run.status()
    assert (status["status"], status["pid"], status["step"]) == ("running", os.getpid(), 7)


def test_result_round_trip_and_not_finite_numbers(tmp_path: Path) -> None:
    run = runs.create(CONFIG, tmp_path)
    assert run.result() is None
    run.write_result({"val_error": float("nan"), "test_error": 1.25, "test_error_interval": [1.0, float("inf")]})
    assert run.result() == {"val_error": None, "test_error": 1.25, "test_error_interval": [1.0, None]}
    json.loads((run.path / "result.json").read_text(), parse_constant=pytest.fail)


def test_latest_finished(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="attn train"):
        runs.latest(tmp_path)
    made = [runs.create(CONFIG, tmp_path) for _ in range(4)]
    for day, run in zip((3, 1, 4, 2), made, strict=True):  # by start, whatever the names say
        edit_status(run, started=f"2024-01-0{day}T00:00:00+00:00", status="finished")
    assert runs.latest(tmp_path) == made[2]
    assert runs.all_runs(tmp_path) == [made[1], made[3], made[0], made[2]]
    edit_status(made[2], status="failed")
    assert runs.latest(tmp_path) == made[0]
    (made[0].path / "status.json").write_text("{")  # a damaged folder does not stop the search
    assert runs.latest(tmp_path) == made[3]


def test_opening_the_wrong_folder_names_the_nearest(tmp_path: Path) -> None:
    run = runs.create(CONFIG, tmp_path)
    assert runs.open_run(run.path) == run
    with pytest.raises(Refused, match=re.escape(repr(run.name))):
        runs.open_run(tmp_path / run.name[:-1])
    with pytest.raises(Refused, match="config.yaml"):
        runs.open_run(tmp_path)
    with pytest.raises(Refused, match="no runs"):
        runs.open_run(tmp_path / "nowhere" / "run")
    with pytest.raises(Refused, match=f"status.json is a file, not a run folder: name its run folder {run.path}"):
        runs.open_run(run.path / "status.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=r"file is a file, not a run folder\.$"):
        runs.open_run(tmp_path / "file")


def test_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    run = runs.create(CONFIG, tmp_path)
    with pytest.raises(Refused, match=r"best\.ckpt; it has none yet"):
        run.checkpoint()
    (run.checkpoints / "last.ckpt").touch()
    with pytest.raises(Refused, match="it has last"):
        run.checkpoint("best")
    assert run.checkpoint("last") == run.path / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    "text",
    [
        *("a: [", "- 1", "", "x: 1\n", "model: {name: ram, _target_: os.system}", "&a [*a]", "\xff"),
        *("seed: 2024-13-45", "seed: !!int abc", "seed: !!timestamp foo"),
    ],
)
def test_damaged_config_is_refused_and_named(tmp_path: Path, text: str) -> None:
    run = runs.create(CONFIG, tmp_path)
    (run.path / "config.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(Refused) as refused:
        run.config()
    assert str(refused.value).count("config.yaml") == 1


def test_oversized_width_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    run = runs.create(CONFIG, tmp_path)
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("hidden: 256", "hidden: 1000000000"))
    with pytest.raises(Refused, match="model.hidden"):
        run.config()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_unwritable_outputs_are_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Refused, match="outputs="):
        runs.create(CONFIG, tmp_path)


def test_a_disk_that_is_full_is_left_without_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: object) -> None:
        raise Refused(f"{path} could not be written (No space left on device).")

    monkeypatch.setattr(runs, "write_atomically", full)
    monkeypatch.setattr(files, "write_atomically", full)
    sweep = plan.Plan("train", (), (), "grid", ((),), (), 1)
    for begin in (lambda: runs.create(CONFIG, tmp_path), lambda: plan.begin(tmp_path / "sweep", sweep)):
        with pytest.raises(Refused, match="No space left"):
            begin()
        assert list(tmp_path.iterdir()) == []


def test_outputs_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="outputs="):
        runs.create(CONFIG, tmp_path / "file")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_commit_of_a_checkout(tmp_path: Path) -> None:
    def commit(package: Path) -> str | None:
        runs.commit.cache_clear()  # which is for a process that asks again
        return runs.commit(package)

    package = tmp_path / "repository" / "attn_cli"
    package.mkdir(parents=True)
    assert commit(package) is None  # a wheel
    repository = package.parent
    git(repository, "init", "-q")
    assert commit(package) is None  # before the first commit
    (package / "model.py").write_text("pass")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "one")
    first = git(repository, "rev-parse", "HEAD")
    assert commit(package) == first
    git(repository, "pack-refs", "--all")
    assert commit(package) == first
    git(repository, "checkout", "-q", "--detach")
    assert commit(package) == first
    worktree = tmp_path / "worktree"
    git(repository, "worktree", "add", "-q", str(worktree))
    git(worktree, "commit", "-q", "--allow-empty", "-m", "two")
    assert commit(worktree / "attn_cli") == git(worktree, "rev-parse", "HEAD") != first
    installed = repository / ".venv" / "lib" / "attn_cli"  # installed below a checkout is not the checkout
    installed.mkdir(parents=True)
    assert commit(installed) is None


def test_commit_of_changed_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, conf = tmp_path / "attn_cli" / "papers" / "measured", tmp_path / "conf"
    measured.mkdir(parents=True)
    conf.mkdir()
    (conf / "train.yaml").write_text("seed: 0")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    first = git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setattr("attn_cli.__file__", str(tmp_path / "attn_cli" / "__init__.py"))
    runs.commit.cache_clear()
    (tmp_path / "RESULTS.md").write_text("what is measured")
    (measured / "ram-1a.json").write_text("changes with every run of `attn reproduce`")
    assert runs.commit() == first
    (conf / "train.yaml").write_text("seed: 1")
    assert runs.commit() == first  # it was asked when the code began to run
    runs.commit.cache_clear()
    assert runs.commit() == first + "-dirty"
    (conf / "train.yaml").write_text("seed: 0")
    (tmp_path / "attn_cli" / "new.py").touch()  # not known to git, but imported all the same
    runs.commit.cache_clear()
    assert runs.commit() == first + "-dirty"
    monkeypatch.setenv("PATH", "")
    runs.commit.cache_clear()
    assert runs.commit() is None
    runs.commit.cache_clear()


def test_versions() -> None:
    versions = runs.versions()
    assert set(versions) == {"attn", "python", "torch", "lightning", "hydra"}
    assert all(re.match(r"\d+\.\d+", str(v)) for v in versions.values())


def test_command_lists_runs(tmp_path: Path, capsys) -> None:
    done, damaged, running, unknown, edited = (runs.create(CONFIG, tmp_path) for _ in range(5))
    done.set_status("finished")
    done.write_result({"val_error": 1.234, "test_error": 1.5, "seconds": 61})
    (damaged.path / "config.yaml").write_text("seed: 2024-13-45")
    (unknown.path / "status.json").write_text("{}")
    edited.write_result({"val_error": 1.234, "test_error": "1,5"})
    assert command.main(["--outputs", str(tmp_path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    for text in ("ram", "mnist", " 6 ", "1.23", "1.50", "1 min 01 s", "finished"):
        assert text in lines[done.name]
    assert all("damaged" in lines[run.name] for run in (damaged, unknown, edited))
    assert "running" in lines[running.name]


def test_command_tells_the_glimpses_of_the_model(tmp_path: Path) -> None:
    """A ConvNet sees the whole image once, whatever glimpses.count is."""
    run = runs.create(CONFIG, tmp_path)
    assert command.row(run)["glimpses"] == CONFIG.glimpses.count
    run.write_result({"glimpses": 1})
    assert command.row(run)["glimpses"] == 1


def test_command_with_an_empty_or_missing_folder(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main([]) == 0
    assert "attn train" in capsys.readouterr().out
    with pytest.raises(Refused, match="nowhere"):
        command.main(["--outputs", "nowhere"])
