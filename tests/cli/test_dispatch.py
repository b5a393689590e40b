"""The dispatcher and sweeps: in real processes where that matters, in this one elsewhere."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import attn_cli
from attn_cli import cli
from attn_cli.commands import entry
from attn_cli.config import schema
from attn_cli.errors import Refused
from attn_cli.sweeps.jobs import read_jobs

REPOSITORY = Path(__file__).resolve().parents[2]

# What a job does is told by its seed, so that a sweep over seeds meets every fate.
STUB = """
import os, signal, sys
from attn_cli.errors import Refused
from attn_cli.sweeps.jobs import read_jobs


def run(config):
    sys.stdout.write(f"argv {' '.join(sys.argv[1:])}\\n")
    match config.seed:
        case 101: raise ValueError("boom")
        case 102: sys.exit(0)
        case 103: raise Refused("Not today.")
        case 104: raise KeyboardInterrupt
        case 105: sys.exit(143)
        case 106: os.kill(os.getpid(), signal.SIGKILL)
        case 107: return {"val_error": float("nan")}
        case 108: sys.exit("a reason")
    error = 12.0 / config.glimpses.count + config.seed
    return {"val_error": error, "test_error": error + 1, "seconds": 2.5, "run": f"outputs/run{config.seed}"}
"""

START = """
import sys
from attn_cli import cli
from attn_cli.commands import entry
from attn_cli.config import schema

entry.HYDRA_COMMANDS["train"] = entry.HydraCommand("train", "train", schema.Config, "stub_job:run")
sys.exit(cli.main())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder; `attn train` runs the stub."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "stub_job.py").write_text(STUB)
    (code / "start.py").write_text(START)
    monkeypatch.syspath_prepend(str(code))
    stub = entry.HydraCommand("train", "train", schema.Config, "stub_job:run")
    monkeypatch.setitem(entry.HYDRA_COMMANDS, "train", stub)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield work
    sys.modules.pop("stub_job", None)


def attn(*words: str, cwd: Path, start: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The real command in its own process; with `start`, the script that puts the stub in."""
    path = os.pathsep.join([str(REPOSITORY), *([str(start.parent)] if start else [])])
    command = [sys.executable, *([str(start)] if start else ["-m", "attn_cli"]), *words]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def jobs(folder: Path) -> list[dict[str, object]]:
    (sweep,) = (folder / "outputs" / "sweeps").iterdir()
    return read_jobs(sweep)


def results(folder: Path) -> list[dict[str, str]]:
    (path,) = (folder / "outputs" / "sweeps").glob("*/results.csv")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- the dispatcher -------------------------------------------------------------------------------------------------


def test_help_is_fast_because_it_imports_neither_torch_nor_hydra() -> None:
    look = (
        "import sys; from attn_cli import cli; code = cli.main(['--help']); "
        "heavy = [m for m in ('torch', 'pytorch_lightning', 'hydra', 'omegaconf') if m in sys.modules]; "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", look], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True
    )
    seconds = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in cli.COMMANDS)
    assert seconds < 2  # 0.05 s on an idle machine; torch alone would take longer


def test_configuration_is_composed_and_refused_without_torch() -> None:
    look = (
        "import sys; from attn_cli import cli; "
        "codes = [cli.main(['train', '--cfg', 'job']), cli.main(['train', 'model.sigma=99'])]; "
        'sys.exit(f\'{codes} {[m for m in ("torch", "pytorch_lightning") if m in sys.modules]}\')'
    )
    done = subprocess.run(
        [sys.executable, "-c", look], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True
    )
    assert done.stderr.endswith("[0, 1] []\n"), done.stderr


def test_python_m_refuses_with_one_sentence_and_an_exit_code(tmp_path: Path) -> None:
    done = attn("train", "model=rum", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "attn train: model=rum is not available. Did you mean 'ram'?\n"
    assert list(tmp_path.iterdir()) == []


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tain"]) == 1
    assert capsys.readouterr().err == "attn: tain is not a command. Did you mean 'train'?\n"


@pytest.mark.parametrize("words", [["--version"], ["train", "--version"]])
def test_version(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"attn {attn_cli.__version__}\n"


def test_help_of_a_command_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "--help"])
    assert left.value.code == 0
    help_text = capsys.readouterr().out
    assert "attn train -m glimpses=2,4,6 seed=1,2" in help_text
    assert "model: convnet_1, convnet_10, convnet_10_small, convnet_5, convnet_64_64_64_512, convnet_bn, " in help_text
    assert "Powered by Hydra" not in help_text


def test_every_command_line_in_the_help_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    for name in entry.HYDRA_COMMANDS:
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        shown = [line.split("  ")[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("  attn")]
        assert len(shown) >= 2
        for line, *_ in shown:
            _, command, *words = line.split()
            if "resume=" not in line and "--cfg" not in words and "-m" not in words:
                assert cli.main([command, *words, "--cfg", "job"]) == 0, capsys.readouterr().err
                capsys.readouterr()


def test_flags_anywhere_and_numbers_for_groups(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "glimpses=7", "--cfg", "job", "scales=2", "-p", "glimpses"]) == 0
    assert "count: 7" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_one_run_leaves_nothing_of_hydras_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.argv
    assert cli.main(["train", "glimpses=4", "--seed", "3"]) == 0
    # the job sees its own words
    assert capsys.readouterr().out == "argv train glimpses.count=4 seed=3\n"
    assert sys.argv is before
    assert list(folder.iterdir()) == []


def test_an_error_of_the_job_is_raised_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="boom"):
        cli.main(["train", "seed=101"])
    assert cli.main(["train", "seed=103"]) == 1
    assert cli.main(["train", "seed=104"]) == 130
    assert capsys.readouterr().err == "attn train: Not today.\nattn train: interrupted.\n"


def test_a_reader_that_has_read_enough_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "attn_cli", "train", "--cfg", "job"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 141)
    process.stderr.close()


@pytest.mark.parametrize(
    ("where", "code", "said"),
    [
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("> /dev/full", 1, "attn: The output cannot be written (No space left on device): make room where it goes.\n"),
        ("> out", 1, "attn: The output cannot be written (File too large): make room where it goes.\n"),
        ("> /dev/null", 0, ""),
    ],
)
def test_output_that_goes_nowhere_is_no_traceback(tmp_path: Path, where: str, code: int, said: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii"}  # the help has a "…"
    line = f"ulimit -f 0; {sys.executable} -m attn_cli --help {where}"
    done = subprocess.run(line, shell=True, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_tab_completion_in_a_real_bash(tmp_path: Path) -> None:
    program = tmp_path / "attn"
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom attn_cli.cli import main\nsys.exit(main())\n")
    program.chmod(0o755)
    # `complete` runs the installed function the way the shell does when TAB is pressed after the line.
    script = """
    eval "$(attn train -sc install=bash)"
    press_tab() {
        COMP_LINE="$1"; COMP_POINT=${#1}; words=($1); COMP_CWORD=$(( ${#words[@]} - 1 ))
        [[ "$1" == *" " ]] && COMP_CWORD=${#words[@]}
        COMPREPLY=(); $(complete -p attn | sed 's/.*-F \\([^ ]*\\).*/\\1/'); echo "${COMPREPLY[*]}"
    }
    press_tab "attn tr"
    press_tab "attn train model=ram_"
    press_tab "attn train -m glimpses=2,4 --seed 3 model.si"
    press_tab "attn mc-average max"
    """
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["train", "model=ram_catch model=ram_lstm", "model.sigma=", "max_samples="]


# --- sweeps ---------------------------------------------------------------------------------------------------------


def test_a_sweep_ends_with_a_table_and_a_csv(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "-m", "glimpses=2,4,6", "seed=1,2"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    table = [line for line in lines if line and line[0] in "246" and "|" in line]
    assert [line[0] for line in table] == ["6", "4", "2"]  # best first: 12/6 < 12/4 < 12/2
    assert table[0][2:5] == ["3.50", "±", "0.71"]  # mean and std of 3 and 4
    rows = results(folder)
    assert [float(row["val_error"]) for row in rows] == [3, 4, 4, 5, 7, 8]
    assert (rows[0]["glimpses.count"], rows[0]["seed"], rows[0]["run"]) == ("6", "1", "outputs/run1")
    assert len(jobs(folder)) == 6
    assert not list((folder / "outputs" / "sweeps").glob("*/curves.png"))  # these runs kept no metrics


def test_a_sweep_draws_the_validation_errors_of_its_runs(folder: Path) -> None:
    for seed, name in ((1, "run1"), (2, "run2")):
        (folder / "outputs" / name).mkdir(parents=True)
        (folder / "outputs" / name / "metrics.csv").write_text(f"epoch,val_error\n1,{seed}\n")
    assert cli.main(["train", "-m", "seed=1,2"]) == 0
    (drawn,) = (folder / "outputs" / "sweeps").glob("*/curves.png")
    assert drawn.stat().st_size > 5000


@pytest.mark.parametrize(
    ("figure", "key", "values"),
    [("rsam/figure4", "glimpses.count", "12345678"), ("soft_ram/figure4", "model.pretrain_glimpse", "02")],
)
def test_a_figure_of_a_paper_is_one_command(folder: Path, figure: str, key: str, values: str) -> None:
    assert cli.main(["train", "-m", f"experiment={figure}"]) == 0
    assert sorted(row[key] for row in results(folder)) == list(values)


@pytest.mark.parametrize(
    ("seed", "status", "message"),
    [
        (101, "failed", "ValueError: boom"),
        (102, "left", "the job left with exit code 0"),
        (103, "failed", "Not today."),
        (108, "left", "exit code 1"),
    ],
)
def test_the_rest_run_when_a_job_fails_or_leaves(folder: Path, seed: int, status: str, message: str) -> None:
    assert cli.main(["train", "-m", f"seed=1,{seed},2"]) == 1
    found = jobs(folder)
    assert [job["status"] for job in found] == ["finished", status, "finished"]
    assert message in str(found[1]["message"])
    assert ("Traceback" in str(found[1].get("traceback"))) == (seed == 101)
    assert found[1]["overrides"] == [f"seed={seed}"]
    rows = results(folder)
    assert [row["status"] for row in rows] == ["finished", "finished", status]


def test_a_configuration_out_of_range_fails_only_its_job(folder: Path) -> None:
    assert cli.main(["train", "-m", "model.sigma=0.1,99"]) == 1
    assert [job["status"] for job in jobs(folder)] == ["finished", "failed"]
    assert "model.sigma must be above 0" in str(jobs(folder)[1]["message"])


@pytest.mark.parametrize(("seed", "code"), [(104, 130), (105, 143)])
def test_a_stop_ends_the_sweep_with_what_there_is(folder: Path, seed: int, code: int) -> None:
    assert cli.main(["train", "-m", f"seed=1,{seed},2"]) == code
    assert [job["status"] for job in jobs(folder)] == ["finished", "interrupted"]
    assert len(results(folder)) == 2


def test_a_nan_is_never_the_best(folder: Path) -> None:
    assert cli.main(["train", "-m", "seed=107,1"]) == 0
    assert [row["seed"] for row in results(folder)] == ["1", "107"]


def test_a_killed_sweep_leaves_status_files_to_go_on_from(folder: Path) -> None:
    start = folder.parent / "code" / "start.py"
    done = attn("train", "-m", "seed=1,106,2", start=start, cwd=folder)
    assert done.returncode == -9
    assert [job["status"] for job in jobs(folder)] == ["finished", "running"]
    (plan,) = (folder / "outputs" / "sweeps").glob("*/multirun.yaml")
    assert "seed=1,106,2" in plan.read_text()  # with the status files: job 2 is missing


def test_a_job_killed_in_a_worker_is_named(folder: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    start = folder.parent / "code" / "start.py"
    words = ["train", "-m", "seed=1,106", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    assert attn(*words, start=start, cwd=folder).returncode == -9  # one job: joblib works in this very process
    shutil.rmtree(folder / "outputs")
    words[-1] = "hydra.launcher.n_jobs=2"
    done = attn(*words, start=start, cwd=folder)
    assert done.returncode == 1
    said = done.stderr[done.stderr.index("The sweep broke off: TerminatedWorkerError") :].splitlines()
    assert "did not finish" in said[1]  # the library's own text has many lines
    assert "killed" in [job["status"] for job in jobs(folder)]


def test_sweeps_started_together_have_their_own_folders(folder: Path) -> None:
    command = entry.HYDRA_COMMANDS["train"]
    assert len({entry.sweep_folder(command, ()) for _ in range(500)}) == 500
    assert entry.sweep_folder(command, ("outputs='my runs'",)).parent == Path("my runs/sweeps")


def test_a_damaged_status_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "job-000.json").write_text('{"job": 0')
    with pytest.raises(Refused, match="job-000.json cannot be read"):
        read_jobs(tmp_path)
    whole = {"job": 0, "overrides": ["seed=1"], "status": "finished"}
    now = {"status": "running", "pid": 1, "started": "2026-01-01T00:00:00+00:00"}
    for right in (whole, whole | now, whole | {"result": None}):
        (tmp_path / "job-000.json").write_text(json.dumps(right))
        assert read_jobs(tmp_path) == [right]
    wrong = [
        {"job": "x"},
        {"overrides": "seed=1"},
        {"status": "bogus"},
        {"result": 5},
        now | {"pid": None},
        now | {"started": 3},
    ]
    for content in ([1], *(whole | change for change in wrong)):
        (tmp_path / "job-000.json").write_text(json.dumps(content))
        with pytest.raises(Refused, match="job-000.json is not a status file"):
            read_jobs(tmp_path)


def test_a_signal_while_python_shuts_down_prints_nothing():
    """What runs last at exit sends the process Ctrl-C."""
    late = "import atexit, os, signal, sys, time; from attn_cli import cli; sys.argv = ['attn', '--version']; "
    late += "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(5))); sys.exit(cli.run())"
    done = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "") and done.stdout.startswith("attn ")
