"""Running what a table is missing: which runs, in which order, within which time, and what each leaves.

1. A step is a cell with a seed. Its runs lie in outputs/reproduce/TABLE/CELL/seed-N. All state is in these run folders
   and in the records: whatever was interrupted, killed or finished is found there by the next command.
2. A run counts for a step if its configuration is the one that the step would start now. So a run is begun anew, in
   another folder, after its experiment has changed.
3. Training is a process of its own, `attn train`, so that no run depends on the ones before it; evaluations are not.
4. Steps are done seed by seed: all cells with one seed come before the second.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from attn_cli.commands import entry
from attn_cli.config import plugin_source, schema
from attn_cli.errors import Refused, Terminated
from attn_cli.files import locked
from attn_cli.papers import records, report
from attn_cli.papers.cells import MINUTE, Absent, Attend, Cell, Combine, Evaluate, Table, Train, sources
from attn_cli.papers.index import resolve
from attn_cli.papers.records import OUTPUTS, Record
from attn_cli.runs import Run, all_runs, commit

RECIPE = ("trainer.threads=1", "trainer.precision=bf16")  # of every training; a cell's own settings come after it
STOPPED = (130, 143)  # exit codes after Ctrl-C and SIGTERM


@dataclass(frozen=True)
class Step:
    table: Table
    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        return f"{self.table.name}/{self.cell.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        return OUTPUTS / self.table.name / self.cell.name / f"seed-{self.seed}"

    def source(self, reference: str) -> Step:
        """The step with the same seed of a cell that this one refers to."""
        return Step(*resolve(self.table, reference), self.seed)

    def recorded(self) -> bool:
        return self.seed in records.seeds(records.load(self.table).get(self.cell.name, []))


def plan(table: Table, cells: Iterable[Cell], seeds: int) -> list[Step]:
    """What must be run so that each of the cells has a record of each seed, in an order in which it can be run."""
    steps: dict[Step, None] = {}

    def need(step: Step) -> None:
        for reference in sources(step.cell.how):
            earlier = step.source(reference)
            if product(earlier) is None:
                need(earlier)
        steps[step] = None

    for seed in range(1, seeds + 1):
        for cell in cells:
            step = Step(*resolve(table, cell.name), seed)
            if not isinstance(step.cell.how, Absent) and not step.recorded():
                need(step)
    for recorded in {(step.table.name, step.cell.name): step for step in steps}.values():
        check_alike(recorded)
    return list(steps)


def check_alike(step: Step) -> None:
    """Refuse a training that is not as long as those recorded for its cell: their mean would be that of neither."""
    how = step.cell.how
    measured = records.load(step.table).get(step.cell.name, [])
    known = {record.epochs for record in measured if record.epochs is not None}
    if not known or not isinstance(how, Train):
        return
    start = [f"{how.by}=RUN"] if how.start else []
    epochs = composed("train", [f"experiment={how.experiment}", *RECIPE, *how.overrides, *start]).trainer.epochs
    if known != {epochs}:
        raise Refused(
            f"{step.table.name}/{step.cell.name} is recorded after {min(known - {epochs})} epochs and is trained for "
            f"{epochs} now: take those records out of {records.file_name(step.table)} to have all seeds measured alike."
        )


def expected(step: Step) -> float | None:
    """Seconds that the step will take on a CPU, less what an interrupted run has done; None: not known."""
    how = step.cell.how
    seconds = how.cpu if isinstance(how, Train | Evaluate | Combine | Attend) else None
    run = newest(step)
    if seconds is None or run is None:
        return seconds
    return seconds * (1 - (run.status().get("epoch") or 0) / run.config().trainer.epochs)


def words(step: Step) -> list[str] | None:
    """What follows `attn train`, `eval`, `combine` or `attend`; None while a run that it needs is not finished."""
    how = step.cell.how
    paths = [product(step.source(reference)) for reference in sources(how)]
    if None in paths:
        return None
    if isinstance(how, Train):
        several = isinstance(how.start, tuple)
        start = [f"{how.by}=[{','.join(map(str, paths))}]" if several else f"{how.by}={paths[0]}"] if paths else []
        own = [f"seed={step.seed}", f"outputs={step.folder}"]
        return [f"experiment={how.experiment}", *RECIPE, *how.overrides, *start, *own]
    if isinstance(how, Combine):
        return [f"forward={paths[0]}", f"backward={paths[1]}", *how.overrides, "threads=1"]
    if isinstance(how, Evaluate):
        return [f"run={paths[0]}", *how.overrides, "threads=1"]
    (source,) = paths
    assert isinstance(how, Attend) and source is not None
    return [f"run={source}", *how.overrides, f"output={regions(step, source)}", "threads=1"]


def newest(step: Step) -> Run | None:
    """The latest run of a training step that has the step's configuration, finished or not."""
    given = words(step) if isinstance(step.cell.how, Train) and step.folder.is_dir() else None
    if given is None:
        return None
    wanted = composed("train", given)
    for run in reversed(all_runs(step.folder)):
        if run.config() == wanted:
            return run
    return None


def product(step: Step) -> Path | None:
    """The finished run folder of a step, or its file of regions; None before there is one."""
    if isinstance(step.cell.how, Attend):
        source = product(step.source(step.cell.how.of))
        path = source and regions(step, source)
        return path if path and path.is_file() else None
    run = newest(step)
    return run.path if run is not None and run.status()["status"] == "finished" else None


def regions(step: Step, run: Path) -> Path:
    """The file of a step that cuts regions out of the images of this run: that of another run is another file."""
    return step.folder / f"regions-{run.name}.h5"


def composed(command: str, given: Sequence[str]) -> Any:
    """The configuration of a command as its dataclass. Each is composed once: Hydra takes its time."""
    return _composed(command, tuple(given))


@cache
def _composed(command: str, given: tuple[str, ...]) -> Any:
    plugin_source.register()
    known = entry.HYDRA_COMMANDS[command]
    with initialize_config_dir(str(entry.conf_folder()), version_base="1.3"):
        values = compose(known.config_name, overrides=list(given))
    return schema.load(values) if known.config is schema.Config else schema.load_as(known.config, values)


def run_all(steps: Sequence[Step], budget: float | None, recorded: Callable[[], object]) -> int:
    """Run the steps; `recorded` is called after each that has given a number. Returns the exit code.

    A step that fails, or does not fit what is left of the budget (seconds), takes those that need it with it; the
    others are run. Raises Refused if none fits.
    """
    if budget is not None and steps:
        check_budget(steps, budget)
    began, left, failed = time.monotonic(), [], []
    for number, step in enumerate(steps, 1):
        given = words(step)
        seconds = expected(step) if given is not None else None
        if given is None:
            left.append(step)
        elif budget is not None and (seconds is None or seconds > budget - (time.monotonic() - began)):
            print(f"{step.name} is left for another time: {_takes(seconds)}.")
            left.append(step)
        else:
            print(f"[{number} of {len(steps)}] {step.name} ({_takes(seconds)})", flush=True)
            try:
                record = _train(step, given) if isinstance(step.cell.how, Train) else _evaluate(step, given)
            except Refused as error:
                if error.exit_code in STOPPED:
                    raise
                print(f"attn reproduce: {step.name}: {error}", file=sys.stderr, flush=True)
                failed.append(step)
                continue
            if record is not None:
                records.add(step.table, step.cell.name, record)
                recorded()
    if failed or left:
        said = f"{len(failed)} failed and {len(left)} left" if failed else f"{len(left)} left"
        print(f"{said} of {len(steps)} runs: the same command goes on with them.", file=sys.stderr if failed else None)
    return 1 if failed else 0


def check_budget(steps: Sequence[Step], budget: float) -> None:
    """Refuse a budget that is too small for each run that could be started at once."""
    ready = [(expected(step), step) for step in steps if words(step) is not None]
    if any(seconds is not None and seconds <= budget for seconds, _ in ready):
        return
    known = [(seconds, step) for seconds, step in ready if seconds is not None]
    if not known:
        raise Refused(f"No time is known for {ready[0][1].name}, so that no budget can be kept: leave out --budget.")
    seconds, step = min(known, key=lambda pair: pair[0])
    raise Refused(
        f"A budget of {report.about(budget)} is too small for one run: {step.name} takes about {report.about(seconds)} "
        "on a CPU."
    )


def _takes(seconds: float | None) -> str:
    return "its time is not known" if seconds is None else f"about {report.about(seconds)} on a CPU"


def _train(step: Step, given: list[str]) -> Record:
    """Start or resume the run of a step, unless it is finished, and wait for its result."""
    run = newest(step)
    status = run.status() if run is not None else {}
    if run is not None:
        run.check_idle()
    if status.get("status") != "finished":
        step.folder.mkdir(parents=True, exist_ok=True)
        taken = f"another process is about to train in {step.folder}: wait until that has ended."
        with locked(step.folder, taken) as handle:  # the run has it, too: it may outlive this process
            _attn(["train", f"resume={run.path}"] if run is not None and run.resumable else ["train", *given], handle)
        run = newest(step)
    result = run.result() if run is not None else None
    if run is None or result is None:
        raise Refused(f"the run in {step.folder} has no result.json: delete it to have it run anew.")
    shown = [word for word in given if not word.startswith("outputs=")]
    return Record(
        seeds=(step.seed,),
        value=round(result["test_error"], 4),
        validation=round(result["val_error"], 4),
        interval=tuple(round(edge, 4) for edge in result["test_error_interval"]),
        images=result["images"],
        epochs=result["epochs"],
        seconds=round(result["seconds"], 1),
        hardware=hardware(result["device"], result["threads"], result["seconds"]),
        commit=short(result["commit"]),
        command=shlex.join(["attn", "train", *shown]),
        note=remark(result),
    )


def remark(result: Mapping[str, Any]) -> str:
    """What an error is to be read with, of a result or an evaluation: how many glimpses it took, where not all were
    taken; how often the gaze was on an object that moves.
    """
    most = result.get("most_glimpses", result.get("glimpses"))  # of an evaluation, of a result
    found = []
    if result.get("mean_glimpses", most) != most:
        found.append(f"at {result['mean_glimpses']:.2f} glimpses")
    if "gaze_on_target" in result:
        found.append(f"gaze on the object in {result['gaze_on_target']:.1f} % of the frames")
    return "; ".join(found)


def _attn(given: list[str], handle: int) -> None:
    """Run an `attn` command in a process of its own, to which a file handle is passed on; raises Refused if it does not
    end well.

    The process is not in our group, so that a signal reaches it once, from us; it then ends with a checkpoint.
    """
    print(shlex.join(["attn", *given]), flush=True)
    child = subprocess.Popen([sys.executable, "-m", "attn_cli", *given], process_group=0, pass_fds=(handle,))
    stop: KeyboardInterrupt | None = None
    code: int | None = None
    while code is None:
        try:
            code = child.wait()
        except KeyboardInterrupt as signalled:  # or Terminated, which is one
            stop = signalled
            child.send_signal(signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    if stop is not None:
        print("The same command goes on from here.", file=sys.stderr, flush=True)
        raise stop
    if code in STOPPED:
        raise Refused("the run was stopped: the same command goes on from here.", code)
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise Refused(f"`{shlex.join(['attn', *given])}` {how}: the same command tries again.")


def _evaluate(step: Step, given: list[str]) -> Record | None:
    """`attn eval`, `combine` or `attend` within this process."""
    from attn_cli.commands import attend, combine, evaluate
    from attn_cli.devices import choose_device

    how = step.cell.how
    command = "eval" if isinstance(how, Evaluate) else "combine" if isinstance(how, Combine) else "attend"
    print(shlex.join(["attn", command, *given]), flush=True)
    config = composed(command, given)
    if isinstance(how, Attend):
        step.folder.mkdir(parents=True, exist_ok=True)
        attend.run(config)
        return None
    result = evaluate.run(config) if isinstance(how, Evaluate) else combine.run(config)
    gain = (result["gain"], *result["gain_interval"]) if "gain" in result else None
    return Record(
        seeds=(step.seed,),
        value=round(result["test_error"], 4),
        interval=tuple(round(edge, 4) for edge in result["test_error_interval"]),
        gain=None if gain is None else tuple(round(points, 4) for points in gain),
        images=result["images"],
        seconds=round(result["seconds"], 1),
        hardware=hardware(str(choose_device("auto")), 1, result["seconds"]),
        commit=short(commit()),
        command=shlex.join(["attn", command, *given]),
        note=remark(result),
    )


def short(commit: str | None) -> str:
    """A commit, or several with commas between them, by 7 of its digits each; "-dirty" stays."""
    return re.sub(r"\b([0-9a-f]{7})[0-9a-f]+", r"\1", commit or "")


def hardware(device: str, threads: int, seconds: float) -> str:
    """The processor that did it, in words; of a CPU whether it had more to do in the seconds that have passed since."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    window = 0 if seconds < 3 * MINUTE else 1 if seconds < 10 * MINUTE else 2  # the load of 1, 5 or 15 minutes
    busy = "busy " if os.getloadavg()[window] > threads + 0.5 else ""
    return f"{threads} of {os.cpu_count()} {busy}cores, {model}"
