"""Faults and bad inputs, provoked through the real command in real processes.

The parts have unit tests of their own; here `attn` as a whole must keep what it promises.
"""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from attn_cli.errors import Refused
from attn_cli.files import locked
from attn_cli.learning.checkpoints import load, newest_valid, save
from attn_cli.runs import Run

STEPS = 40  # an epoch of 640 images
LONG = (
    "trainer=smoke", "model.hidden=32", "model.glimpse_hidden=16", "model.glimpse_features=32", "data.train_limit=640",
    "trainer.limit_train_steps=null", "trainer.batch_size=16", "trainer.epochs=2",
)  # fmt: skip
EVERY_STEP = "trainer.checkpoint_seconds=0.001"
PATIENCE = 120  # seconds for what takes one or two on an idle machine


def assert_refused(done: subprocess.CompletedProcess[str], *needles: str) -> None:
    """One sentence on stderr that holds all the needles, no traceback, an exit code that is not 0."""
    said = f"{done.args}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == 1, said
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith(("attn ", "attn: ")), said
    assert "Traceback" not in done.stderr + done.stdout, said
    assert all(needle in lines[0] for needle in needles), f"{needles} not all in: {said}"


def wait_until(condition: Callable[[], Any], process: Any) -> Any:
    """The first true value of `condition`, asked every few milliseconds while the process runs."""
    for _ in range(PATIENCE * 500):  # not a clock: a machine that sleeps for a while stops both processes
        if value := condition():
            return value
        assert process.poll() is None, f"it ended too early with {process.returncode}: {process.communicate()}"
        time.sleep(0.002)
    pytest.fail("it did not come to pass")


def end(process: Any, number: int) -> tuple[int, str, str]:
    """Send a signal; the exit code, stdout and stderr."""
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def step_of(run: Path) -> int:
    """Where last.ckpt stands; 0 if there is none."""
    path = run / "checkpoints" / "last.ckpt"
    return load(path)["global_step"] if path.exists() else 0


def only_run(attn: Any) -> Path | None:
    found = attn.runs()
    assert len(found) <= 1
    return found[0] if found else None


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv without its times."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """The places where two nested values differ, bit for bit."""
    if type(one) is not type(other):
        return [f"{where}: {one!r} and {other!r}"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: keys {sorted(one)} and {sorted(other)}"]
        return [found for key in one for found in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{where}: lengths {len(one)} and {len(other)}"]
        pairs = enumerate(zip(one, other, strict=True))
        return [found for i, pair in pairs for found in differences(*pair, f"{where}[{i}]")]
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        return [] if same else [f"{where}: tensors differ"]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]


def assert_same_run(run: Path, whole: Path) -> None:
    """Checkpoints (weights, optimiser, schedule, random states), metrics and result are those of `whole`."""
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (load(folder / "checkpoints" / name) for folder in (run, whole))
        for checkpoint in (one, other):
            del checkpoint["learner"]["seconds"], checkpoint["learner"]["commits"]  # this code may have been committed
        assert {"state_dict", "optimizer_states", "lr_schedulers", "attn"} <= set(one)
        assert differences(one, other) == []
    assert rows(run) == rows(whole)
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]
    results = [json.loads((folder / "result.json").read_text()) for folder in (run, whole)]
    for key in ("val_error", "test_error", "test_error_interval", "digests"):
        assert results[0][key] == results[1][key]
    assert status(run)["status"] == "finished"


def resumable_copy(run: Path, folder: Path) -> Path:
    """A copy of a finished run as it is when it was terminated just before the end."""
    copy = folder / "outputs" / run.name
    shutil.copytree(run, copy)
    (copy / "result.json").unlink()
    (copy / "status.json").write_text(json.dumps({**status(run), "status": "terminated"}))
    return copy


@pytest.fixture(autouse=True)
def ctrl_c_works() -> Iterator[None]:
    """A shell's background jobs ignore SIGINT, and so would the processes that they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, trained: Any) -> Path:
    """The run that nothing interrupted."""
    attn = type(trained)(tmp_path_factory.mktemp("whole"), trained.data)
    attn("train", *LONG, EVERY_STEP)
    (run,) = attn.runs()
    return run


# Rows 7, 9, 10: the ends of a process


def test_killed_within_two_epochs_and_resumed_is_the_same_run(attn, whole):
    process = attn.start("train", *LONG, EVERY_STEP)
    run = wait_until(lambda: only_run(attn), process)
    wait_until(lambda: step_of(run) >= 5, process)
    assert end(process, signal.SIGKILL)[0] == -signal.SIGKILL
    first = step_of(run)
    assert 5 <= first < STEPS and not (run / "metrics.csv").exists()
    assert "killed" in attn("runs").stdout

    process = attn.start("train", f"resume={run}")
    wait_until(lambda: step_of(run) > STEPS + 5, process)
    assert end(process, signal.SIGKILL)[0] == -signal.SIGKILL
    assert STEPS + 5 < step_of(run) < 2 * STEPS
    assert [row["epoch"] for row in rows(run)] == ["1"]

    attn("train", f"resume={run}")
    assert_same_run(run, whole)


def test_killed_between_two_checkpoints_and_resumed_is_the_same_run(attn, whole):
    process = attn.start("train", *LONG)  # a checkpoint an epoch
    run = wait_until(lambda: only_run(attn), process)
    wait_until(lambda: step_of(run) == STEPS, process)
    end(process, signal.SIGKILL)
    assert step_of(run) == STEPS
    attn("train", f"resume={run}")
    assert_same_run(run, whole)


def test_terminated_then_interrupted_then_resumed_is_the_same_run(attn, whole):
    process = attn.start("train", *LONG, EVERY_STEP)
    run = wait_until(lambda: only_run(attn), process)
    wait_until(lambda: step_of(run) >= 3, process)
    code, _, err = end(process, signal.SIGTERM)
    assert code == 143 and "Traceback" not in err and f"attn train resume={run.relative_to(attn.folder)}" in err
    assert status(run)["status"] == "terminated" and "checkpoint" in status(run)["message"]
    stopped = step_of(run)
    assert 3 <= stopped < STEPS and f"after {stopped} steps" in err

    run = run.rename(run.with_name("my run, (a=b)"))
    process = attn.start("train", f"resume='{run}'")
    wait_until(lambda: step_of(run) > STEPS + 3, process)
    code, _, err = end(process, signal.SIGINT)
    assert code == 130 and "Traceback" not in err
    assert status(run)["status"] == "interrupted"
    assert STEPS + 3 < step_of(run) < 2 * STEPS

    _, *words = shlex.split(err.split("`")[1])  # the command that it prints can be pasted
    assert words == ["train", f'resume="{run}"']
    attn(*words)
    assert_same_run(run, whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_before_training_leaves_nothing(attn, tmp_path, number, code):
    attn.data = tmp_path / "empty"
    process = attn.start("train", *LONG)
    wait_until(lambda: any(attn.data.glob("*")), process)  # the digits are being rendered
    ended, _, err = end(process, number)
    assert ended == code
    assert len(err.splitlines()) == 1 and err.startswith("attn train: "), err
    assert attn.runs() == []
    assert [path.name for path in attn.data.iterdir() if path.suffix != ".lock"] == []


def test_stopped_and_killed_in_the_final_evaluation(attn, whole):
    process = attn.start("train", *LONG, EVERY_STEP, "trainer.eval_batch_size=25")
    run = wait_until(lambda: only_run(attn), process)
    wait_until(lambda: (run / "curves.png").exists(), process)
    code, _, err = end(process, signal.SIGTERM)
    assert code == 143 and len(err.splitlines()) == 1, err
    assert f"attn train resume={run.relative_to(attn.folder)}" in err
    assert status(run)["status"] == "terminated" and not (run / "result.json").exists()

    process = attn.start("train", f"resume={run}")
    wait_until(lambda: status(run)["pid"] == process.pid, process)
    time.sleep(0.3)
    end(process, signal.SIGKILL)
    assert step_of(run) == 2 * STEPS and not (run / "result.json").exists()

    attn("train", f"resume={run}")
    assert_same_run(run, whole)


# Rows 4, 6: which checkpoint a resume takes, and which runs it refuses


def test_truncated_checkpoint_is_named_and_the_previous_one_taken(attn, whole):
    run = resumable_copy(whole, attn.folder)
    last = run / "checkpoints" / "last.ckpt"
    previous = load(run / "checkpoints" / "previous.ckpt")["global_step"]
    assert previous < 2 * STEPS
    (run / "checkpoints" / "best.ckpt").unlink()  # it may stand at the very end
    os.truncate(last, last.stat().st_size // 2)
    said = attn("train", f"resume={run}").stdout
    assert f"Passed over: {last}" in said and f"previous.ckpt (step {previous})" in said
    assert_same_run(run, whole)


def test_a_run_that_goes_on_with_other_code_names_every_commit(attn, whole):
    own = json.loads((whole / "result.json").read_text())["commit"]
    for earlier, expected in ((["0a1b", "2c3d-dirty"], ["0a1b", "2c3d-dirty"]), (None, [])):
        run = resumable_copy(whole, attn.folder)
        last = run / "checkpoints" / "last.ckpt"
        checkpoint = load(last)
        if earlier is None:  # written before commits were kept
            del checkpoint["learner"]["commits"]
        else:
            checkpoint["learner"]["commits"] = earlier
        save(last, checkpoint)
        attn("train", f"resume={run}")
        commit = json.loads((run / "result.json").read_text())["commit"]
        assert commit == (", ".join([*expected, *([own] if own else [])]) or None)
        shutil.rmtree(run)


def test_what_cannot_be_resumed_is_refused(attn, whole):
    terminated = resumable_copy(whole, attn.folder)
    bare = shutil.copytree(terminated, attn.folder / "outputs" / "bare")
    for path in (bare / "checkpoints").iterdir():
        path.unlink()
    damaged = shutil.copytree(terminated, attn.folder / "outputs" / "damaged")
    for path in (damaged / "checkpoints").iterdir():
        path.write_bytes(b"")
    running = shutil.copytree(terminated, attn.folder / "outputs" / "running")
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    ours = {**status(terminated), "status": "running", "pid": os.getpid(), "started": now}
    (running / "status.json").write_text(json.dumps(ours))
    unknown = shutil.copytree(terminated, attn.folder / "outputs" / "unknown")
    (unknown / "status.json").write_text("{}")
    before = {path: path.read_bytes() for path in attn.folder.rglob("*") if path.is_file()}

    cases = [
        ([f"resume={whole}"], ("is finished", f"attn eval run={whole}")),
        ([f"resume={running}"], ("still being trained", str(os.getpid()))),
        ([f"resume={bare}"], ("no checkpoint", str(bare))),
        ([f"resume={damaged}"], ("No checkpoint", "last.ckpt")),
        ([f"resume={unknown}"], (f"{unknown}/status.json has none of the statuses",)),
        (["resume=outputs"], ("outputs is not a run folder", "config.yaml")),
        ([f"resume=outputs/{terminated.name[:-1]}"], ("There is no run folder", f"Did you mean '{terminated.name}'")),
        ([f"resume={terminated}", "seed=3"], ("leave out seed=3",)),
        ([f"resume={terminated}", "model=ram_lstm", "seed=3"], ("leave out model=ram_lstm seed=3",)),
    ]
    for words, needles in cases:
        assert_refused(attn("train", *words, code=None), *needles)
    assert {path: path.read_bytes() for path in attn.folder.rglob("*") if path.is_file()} == before


def test_of_two_that_continue_a_run_at_once_one_is_refused(attn, whole):
    run = resumable_copy(whole, attn.folder)
    with locked(run):
        assert_refused(attn("train", f"resume={run}", code=None), f"{run} is being continued by another process")
    processes = [attn.start("train", f"resume={run}") for _ in range(2)]
    errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1], errors
    assert_same_run(run, whole)


# Rows 14, 15: numbers that are not finite


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(attn):
    done = attn("train", *LONG, EVERY_STEP, "optimizer=sgd", "optimizer.lr=100", "optimizer.clip=null", code=None)
    assert_refused(done, " at step ", "optimizer.lr")
    assert re.search(r"(loss|gradient norm)( of model\.\S+)? is (nan|inf) at step", done.stderr)
    (run,) = attn.runs()
    ended = status(run)
    assert ended["status"] == "failed" and ended["message"] in done.stderr
    step = int(done.stderr.partition(" at step ")[2].split(":")[0].split()[0])
    kept = load(newest_valid(run / "checkpoints"))
    assert 0 < kept["global_step"] <= step
    assert all(value.isfinite().all() for value in kept["state_dict"].values() if value.is_floating_point())
    assert not (run / "result.json").exists()


# Rows 16 to 20: checkpoints and configurations that somebody has edited


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def test_pickles_are_refused_and_run_nothing(attn, whole, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # torch.load's own guard is off
    marker = attn.folder / "it-ran"
    run = resumable_copy(whole, attn.folder)
    best, *others = (run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last", "previous"))
    torch.save({"state_dict": Payload(marker)}, best)
    for path in others:
        path.write_bytes(pickle.dumps(Payload(marker)))
    evaluated = attn("eval", f"run={run}", code=None)
    last = attn("eval", f"run={run}", "checkpoint=last", code=None)
    resumed = attn("train", f"resume={run}", code=None)
    assert not marker.exists()
    assert_refused(evaluated, str(best), "pickle")
    assert_refused(last, str(others[0]), "pickle")
    assert_refused(resumed, "No checkpoint", "pickle")
    pickle.loads(others[0].read_bytes()).close()
    assert marker.exists()  # the payload does work


def test_edited_configurations_are_refused(attn, whole):
    def edited(name: str, edit: Callable[[dict[str, Any]], Any]) -> Path:
        copy = shutil.copytree(whole, attn.folder / "outputs" / name)
        values = yaml.safe_load((copy / "config.yaml").read_text())
        edit(values)
        (copy / "config.yaml").write_text(yaml.safe_dump(values))
        (copy / "status.json").write_text(json.dumps({**status(whole), "status": "terminated"}))
        return copy

    marker = attn.folder / "it-ran"
    commands = (("eval", "run"), ("train", "resume"))
    target = edited("target", lambda values: values["model"].update(_target_="os.system", command=f"touch {marker}"))
    wide = edited("wide", lambda values: values["model"].update(hidden=10**9))
    shape = edited("shape", lambda values: values["model"].update(hidden=48))
    huge = edited("huge", lambda values: values["data"].update(height=10**9, width=10**9))
    lines = [[*words, f"{key}={run}"] for run in (target, wide, huge, shape) for *words, key in commands]
    before = attn.seconds
    done = [attn(*line, code=None) for line in lines]
    for refused in done[:2]:
        assert_refused(refused, str(target / "config.yaml"), "model._target_")
    for refused in done[2:4]:
        assert_refused(refused, str(wide / "config.yaml"), "model.hidden", "4096", "1000000000")
    for refused in done[4:6]:
        assert_refused(refused, str(huge / "config.yaml"), "data.height", "1000000000")
    for refused in done[6:]:
        assert_refused(refused, "ckpt", "float32 of shape", "32", "48")
    assert not marker.exists()
    assert attn.seconds - before < 10  # nothing was allocated, let alone trained


# Row 35: what a person types


@pytest.mark.parametrize(
    ("words", "needles"),
    [
        (["train", "modle.hidden=3"], ("modle", "model")),
        (["train", "model.hiden=3"], ("model.hiden", "'model.hidden'")),
        (["train", "model.hidden=wide"], ("model.hidden", "wide")),
        (["train", "model.hidden=1000000000"], ("model.hidden", "4096", "1000000000")),
        (["train", "model=rma"], ("rma", "'ram'")),
        (["train", "data=mnits"], ("mnits", "'mnist'")),
        (["train", "data=arrays"], ("data.path",)),
        (["eval", "run"], ("run",)),
        (["train", "model._target_=os.system"], ("_target_",)),
        (["train", "+model._target_=os.system"], ("_target_",)),
        (["trian"], ("trian", "'train'")),
        (["runs", "--output"], ("Unrecognized arguments: --output; see `attn runs --help`.",)),
        (["data"], ("list | prepare | info", "see `attn data --help`.")),
        (["data", "prepare", "mnist", "--form"], ("--form", "see `attn data --help`.")),
    ],
)
def test_mistyped_words_are_refused_with_the_nearest(attn, words, needles):
    assert_refused(attn(*words, code=None), *needles)
    assert attn.seconds < 5  # before memory is taken
    assert list(attn.folder.iterdir()) == []


def test_what_is_missing_is_named_with_what_to_do(attn, trained, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (run,) = trained.runs()
    (attn.folder / "taken").write_text("a file")
    np.savez(attn.folder / "none.npz", images=np.zeros((0, 9, 9), np.uint8), labels=np.zeros(0, np.int64))
    np.savez(attn.folder / "flat.npz", images=np.zeros((9, 9), np.uint8), labels=np.zeros(9, np.int64))
    cases = [
        (["eval", f"run={run}x"], ("There is no run folder", f"'{run.name}'")),
        (["eval"], ("no finished run in outputs", "attn train")),
        (["show", "run=taken"], ("taken",)),
        (["train", "data=mnist", "data.download=false"], ("attn data prepare mnist",)),
        (["train", "data=arrays", "data.path=absent.npz"], ("absent.npz", "is not a file")),
        (["train", "data=arrays", "data.path=none.npz"], ("none.npz",)),
        (["train", "data=arrays", "data.path=flat.npz"], ("flat.npz",)),
        (["train", "trainer=gpu"], ("GPU", "trainer=cpu")),
        (["train", *attn.small, "outputs=taken"], ("taken", "outputs=FOLDER")),
        (["train", *attn.small, "outputs=taken/deeper"], ("taken", "outputs=FOLDER")),
    ]
    for command in (["mc-average", "max_samples=2"], ["show", "images=1"]):
        for output in ("taken", "taken/deeper"):
            cases.append(([*command, f"run={run}", f"output={output}"], (f"{output} cannot be made", "output=FOLDER")))
    for words, needles in cases:
        assert_refused(attn(*words, code=None), *needles)
    assert attn.runs() == [] and (attn.folder / "taken").read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_outputs_folder_that_is_not_writable_is_refused(attn):
    (attn.folder / "locked").mkdir(mode=0o555)
    assert_refused(attn("train", *attn.small, "outputs=locked", code=None), "locked", "outputs=FOLDER")


# Row 36: sizes at the edge


def test_tiny_colour_images_a_class_that_never_occurs_and_every_batch_size(attn):
    rng = np.random.default_rng(0)

    def split(name: str, labels: list[int]) -> dict[str, Any]:
        images = rng.integers(0, 256, (len(labels), 5, 3, 3), np.uint8)  # smaller than one patch of the retina
        return {f"{name}_images": images, f"{name}_labels": np.array(labels)}

    # Class 2 is never trained, class 3 never tested.
    arrays = split("train", [0, 1, 3] * 4) | split("validation", [0, 1, 1, 2, 2]) | split("test", [0, 1, 2])
    np.savez(attn.folder / "tiny.npz", **arrays)
    small = [word for word in attn.small if not word.startswith("data.")]
    sizes = "trainer.batch_size=1,5,128"  # of 12 images: one; two left over; fewer than a batch
    attn("train", "-m", "data=arrays", "data.path=tiny.npz", *small, sizes, "trainer.eval_batch_size=2")
    runs = attn.runs()
    steps = {}
    for run in runs:
        batch = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["batch_size"]
        steps[batch] = step_of(run)
        result = json.loads((run / "result.json").read_text())
        assert 0 <= result["test_error"] <= 100 and result["size"] > 5
        assert load(run / "checkpoints" / "best.ckpt")["learner"]["images"] == steps[batch] * min(batch, 12)
    assert steps == {1: 5, 5: 2, 128: 1}

    grey = shutil.copytree(runs[0], attn.folder / "outputs" / "grey")
    values = yaml.safe_load((grey / "config.yaml").read_text())
    values["data"]["grey"] = True
    (grey / "config.yaml").write_text(yaml.safe_dump(values))
    (grey / "images.json").unlink()  # with it the images are called changed
    attn("eval", f"run={runs[0]}", "batch_size=1")
    attn("eval", f"run={runs[0]}", "--mc-samples", "3", "batch_size=2", "split=validation")
    attn("show", f"run={runs[0]}", "images=20")
    mismatch = attn("eval", f"run={grey}", code=None)
    assert json.loads((runs[0] / "evaluation-validation-mc3.json").read_text())["images"] == 5
    assert Image.open(runs[0] / "pictures" / "paths-test.png").size[0] > 100
    assert len(list((runs[0] / "pictures").glob("*.gif"))) == 3
    assert_refused(mismatch, "float32 of shape", "best.ckpt")


# Row 11: a sweep goes on


def test_a_refused_job_of_a_sweep_leaves_the_others(attn):
    done = attn("train", "-m", *attn.small, "trainer.limit_train_steps=1", "optimizer.lr=0.001,1000,0.002", code=None)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "optimizer.lr must be" in done.stderr and "1 of 3 jobs did not finish" in done.stderr
    assert len(attn.runs()) == 2 and all(status(run)["status"] == "finished" for run in attn.runs())
    (sweep,) = (attn.folder / "outputs" / "sweeps").iterdir()
    jobs = [json.loads(path.read_text()) for path in sorted(sweep.glob("job-*.json"))]
    assert [job["status"] for job in jobs] == ["finished", "failed", "finished"]
    table = list(csv.DictReader((sweep / "results.csv").open()))
    assert [row["status"] for row in table] == ["finished", "finished", "failed"]
    assert "1000" in done.stdout and "failed" in done.stdout


# Row 12: a sweep that is killed goes on


def test_a_killed_sweep_runs_only_what_is_missing_and_ends_as_if_it_had_not_been_killed(attn):
    """Two jobs with the same settings and seed: the first is left alone, the second killed half-way and resumed."""
    process = attn.start("train", "-m", *attn.small, "seed=3,3", "trainer.epochs=8", "trainer.threads=1")
    logs = attn.folder / "outputs"
    wait_until(lambda: sum("epoch   3/8" in path.read_text() for path in logs.glob("*/log.txt")) == 2, process)
    assert end(process, signal.SIGKILL)[0] == -signal.SIGKILL
    (sweep,) = (attn.folder / "outputs" / "sweeps").iterdir()
    paths = sorted(sweep.glob("job-*.json"))
    before = [json.loads(path.read_text()) for path in paths]
    assert [job["status"] for job in before] == ["finished", "running"]
    untouched = paths[0].read_bytes()

    done = attn("train", "-m", f"resume_sweep={sweep.relative_to(attn.folder)}")
    assert "1 of 2 jobs are done" in done.stdout and "job 2 of 2 (job-001.json), 1 done" in done.stdout
    assert "epoch   1/8" not in done.stdout and "epoch   8/8" in done.stdout
    assert paths[0].read_bytes() == untouched and len(attn.runs()) == 2
    first, second = (json.loads(path.read_text()) for path in paths)
    assert second["status"] == "finished" and second["run"] == before[1]["run"] != first["run"]
    assert second["result"]["val_error"] == first["result"]["val_error"]
    alone, killed = (
        load(attn.folder / job["run"] / "checkpoints" / "last.ckpt")["state_dict"] for job in (first, second)
    )
    assert all(torch.equal(alone[name], killed[name]) for name in alone)


# Helpers that could hide a fault


def test_refusal_check_can_fail():
    for code, err in ((0, "attn train: no.\n"), (1, "no.\n"), (1, "attn: a\nattn: b\n"), (1, ""), (-9, "attn: x\n")):
        with pytest.raises(AssertionError):
            assert_refused(subprocess.CompletedProcess([], code, "", err))
    with pytest.raises(Refused):
        Run(Path("nowhere")).checkpoint("best")
    assert differences({"a": [torch.zeros(2)]}, {"a": [torch.tensor([0.0, 1.0])]}) == [".a[0]: tensors differ"]
