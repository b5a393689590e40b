"""What a sweep comes to: the best command, the picture per key, the progress over all jobs."""

from __future__ import annotations

import csv
import json
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from attn_cli import runs
from attn_cli.pictures import curves, sweep_axes, tables
from attn_cli.sweeps import jobs, plan, report


def job(number: int, words: list[str], error: float | None = None, status: str = "finished", **more: Any) -> dict:
    result = {} if error is None else {"result": {"val_error": error, "test_error": 99 - error, "seconds": 1.0}}
    begun = {"pid": 2**22 + 1, "started": "2026-01-01T00:00:00+00:00"}
    return {"job": number, "overrides": words, "status": status, "seconds": 60.0, **begun, **result, **more}


def sweep(total: int = 4, flags: tuple[str, ...] = ()) -> plan.Plan:
    return plan.Plan("train", flags, (), "grid", (), (), total)


def test_the_best_setting_is_by_its_mean_over_seeds_and_its_job_by_its_own_error() -> None:
    """glimpses=2 has the luckiest seed; glimpses=4 is better on average. The test error chooses nothing."""
    found = [
        job(0, ["glimpses.count=2", "seed=0"], 1.0),
        job(1, ["glimpses.count=2", "seed=1"], 9.0),
        job(2, ["glimpses.count=4", "seed=0"], 3.0),
        job(3, ["glimpses.count=4", "seed=1"], 2.0),
    ]
    assert report.best_command(sweep(), found) == "attn train glimpses.count=4 seed=1"


def test_the_best_command_can_be_pasted_and_names_threads_and_folders() -> None:
    words = ["data.path=my photos", "model.filters=[8,16,32]"]
    best = job(0, words, 1.0)
    best["result"]["threads"] = 2
    command = report.best_command(sweep(flags=("--config-dir", "my conf")), [best])
    assert command is not None
    assert shlex.split(command) == ["attn", "train", "--config-dir", "my conf", *words, "trainer.threads=2"]
    best["overrides"] = ["trainer.threads=1"]
    assert report.best_command(sweep(), [best]) == "attn train trainer.threads=1"


def test_seeds_that_were_trained_together_count_one_by_one(work, capsys) -> None:
    """Two jobs of three seeds each; the errors are the number of glimpses, 6, plus the seed."""
    assert work("seed=1,9", "trainer.parallel_seeds=3", "glimpses=6", "optimizer.lr=0.01") == 0
    out = capsys.readouterr().out
    assert "12.00 ± 4.47 | 88.00 ± 4.47 |     6 |" in out
    assert "Best by validation error: attn train seed=1 trainer.parallel_seeds=3" in out
    with (work.sweep() / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["job"], line["seed"], float(line["val_error"])) for line in lines] == [
        (str(job), str(seed), 6.0 + seed) for job, seed in ((0, 1), (0, 2), (0, 3), (1, 9), (1, 10), (1, 11))
    ]
    assert [runs.open_run(line["run"]).config().seed for line in lines] == [1, 2, 3, 9, 10, 11]


def test_a_single_job_of_several_seeds_has_a_deviation(work, capsys) -> None:
    assert work("trainer.parallel_seeds=3", "glimpses=6", "optimizer.lr=0.01") == 0
    assert "7.00 ± 1.00 | 93.00 ± 1.00 |     3 |" in capsys.readouterr().out


def test_no_column_of_results_csv_is_there_twice(tmp_path: Path) -> None:
    done = job(0, ["run=outputs/A", "seed=1"], 1.0, run="outputs/A")
    report.write_results(tmp_path / "results.csv", [done, job(1, ["run=outputs/B", "seed=1"], status="failed")])
    heading, row, failed = (tmp_path / "results.csv").read_text().splitlines()
    assert heading == "job,status,seed,val_error,test_error,mean_glimpses,seconds,run,message"
    assert row == "0,finished,1,1.0,98.0,,1.0,outputs/A,"
    assert failed == "1,failed,1,,,,60.0,outputs/B,"


def test_without_a_validation_error_there_is_no_best() -> None:
    assert report.best_command(sweep(), [job(0, ["seed=0"], float("nan")), job(1, ["seed=1"], status="failed")]) is None


def rows(*jobs_: tuple[dict[str, str], float | None]) -> list[dict[str, Any]]:
    return [{"overrides": overrides, "val_error": error} for overrides, error in jobs_]


def test_a_panel_for_each_key_that_was_swept() -> None:
    """A key whose other values all failed has no panel; decades are drawn logarithmically, names side by side."""
    found = rows(
        ({"lr": "0.001", "sigma": "0.1", "model": "ram", "data": "mnist", "seed": "1"}, 3.0),
        ({"lr": "0.1", "sigma": "0.3", "model": "ram_lstm", "data": "mnist", "seed": "1"}, 2.0),
        ({"lr": "0.01", "sigma": "0.2", "model": "ram", "data": "mnist", "seed": "1"}, 4.0),
        ({"lr": "0.01", "sigma": "0.2", "model": "ram", "data": "mnist", "seed": "2"}, None),
    )
    assert sweep_axes.keys(found) == ["lr", "sigma", "model"]
    lr, sigma, model = sweep_axes.axes_figure(found).axes
    assert [panel.get_xlabel() for panel in (lr, sigma, model)] == ["lr", "sigma", "model"]
    assert (lr.get_xscale(), sigma.get_xscale(), model.get_xscale()) == ("log", "linear", "linear")
    assert [label.get_text() for label in model.get_xticklabels()] == ["ram", "ram_lstm"]
    points, best = lr.get_lines()[-2:]
    assert points.get_xydata().tolist() == [[0.001, 3.0], [0.1, 2.0], [0.01, 4.0]]
    assert best.get_xydata().tolist() == [[0.1, 2.0]]
    means = model.get_lines()[0]
    assert means.get_xydata().tolist() == [[0, 3.5], [1, 2.0]]


@pytest.mark.filterwarnings("error")
def test_long_values_leave_room_for_the_points(tmp_path: Path) -> None:
    """They end below their place, and dollars in them are no formula."""
    folder = "/home/someone/projects/attention/experiments/outputs/mnist-ram-6g-20260101-120000-000"
    found = rows(*(({"init_from": f"{folder}{i}", "logger.project": f"$\\{i}$"}, float(i)) for i in range(1, 4)))
    runs_, projects = sweep_axes.axes_figure(found).axes
    labels = runs_.get_xticklabels()
    assert [label.get_text() for label in labels] == [f"/home/…60101-120000-000{i}" for i in range(1, 4)]
    assert {label.get_ha() for label in labels} == {"right"}
    assert [label.get_text() for label in projects.get_xticklabels()] == ["$\\1$", "$\\2$", "$\\3$"]
    assert sweep_axes.draw(found, tmp_path / "axes.png").stat().st_size > 5_000


def test_the_error_against_the_glimpses_that_were_used() -> None:
    """Two seeds of a price, another price, and models that always take all glimpses: those have a series of their
    own; the table has a column, results.csv, too.
    """
    found = [
        job(0, ["model.stop=learned", "model.glimpse_cost=0.1", "seed=0"], 90.0),
        job(1, ["model.stop=learned", "model.glimpse_cost=0.1", "seed=1"], 92.0),
        job(2, ["model.stop=learned", "model.glimpse_cost=0.01", "seed=0"], 95.0),
        job(3, ["model.stop=never", "model.glimpse_cost=0.1", "seed=0"], 96.0),
    ]
    for each, mean in zip(found, (2.0, 3.0, 4.5, None), strict=True):
        each["result"] |= {"glimpses": 6} | ({} if mean is None else {"mean_glimpses": mean})
    settings = tables.sweep_summary(report.table_rows(found))
    (ax,) = curves.glimpse_figure(settings).axes
    handles, labels = ax.get_legend_handles_labels()
    drawn = {label: handle.lines[0].get_xydata().tolist() for handle, label in zip(handles, labels, strict=True)}
    assert drawn == {"stops by itself": [[2.5, 8.0], [4.5, 4.0]], "always all glimpses": [[6.0, 3.0]]}
    text = tables.as_text(tables.sweep_table(report.table_rows(found)))
    assert "mean glimpses" in text and "2.50" in text and "4.50" in text
    without = [{**row, "mean_glimpses": None} for row in report.table_rows(found)]
    assert "mean glimpses" not in tables.as_text(tables.sweep_table(without))


@pytest.mark.parametrize("glimpses", [None, 6])
def test_the_glimpses_are_drawn_only_where_the_results_tell_them(tmp_path: Path, glimpses: int | None) -> None:
    """A result of `attn eval` has the mean number of glimpses, of a model that never stops by itself too."""
    for number in range(2):
        found = job(number, [f"seed={number}"], 90.0)
        found["result"] |= {"mean_glimpses": 6.0} | ({} if glimpses is None else {"glimpses": glimpses})
        jobs.write(tmp_path, found)
    assert report.finish(tmp_path) == 0
    assert (tmp_path / "glimpses.png").exists() == (glimpses is not None)


@pytest.mark.parametrize("rates", [(0.1, 0.2), (0.1,)])
def test_the_axes_are_drawn_where_jobs_differ(tmp_path: Path, rates: tuple[float, ...]) -> None:
    for number, rate in enumerate(rates):
        jobs.write(tmp_path, job(number, [f"optimizer.lr={rate}"], 90.0))
    assert report.finish(tmp_path) == 0
    assert (tmp_path / "axes.png").exists() == (len(rates) > 1)


def test_many_keys_take_several_lines_and_make_a_picture(tmp_path: Path) -> None:
    found = rows(*(({f"key{i}": str(i + j) for i in range(6)}, float(j)) for j in range(1, 3)))
    figure = sweep_axes.axes_figure(found)
    assert sum(panel.axison for panel in figure.axes) == 6
    path = sweep_axes.draw(found, tmp_path / "axes.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["running"], "1 of 12 (job-000.json)"),
        (["finished", "failed", "running"], "3 of 12 (job-002.json), 1 done, 1 failed, about 10 min left"),
        # two at once: half the time
        (["finished", "finished", "running", "running"], "4 of 12 (job-003.json), 2 done, about 5 min left"),
    ],
)
def test_progress_over_the_whole_sweep(tmp_path: Path, statuses: list[str], expected: str) -> None:
    plan.begin(tmp_path, sweep(total=12))
    for number, status in enumerate(statuses):
        started = datetime.now().astimezone().isoformat()
        jobs.write(tmp_path, job(number, ["seed=0"], status=status, started=started))
    assert jobs.progress(tmp_path, len(statuses) - 1) == expected


def test_jobs_that_failed_before_a_resume_are_still_to_be_run(tmp_path: Path) -> None:
    plan.begin(tmp_path, sweep(total=4))
    earlier, now = "2026-01-01T00:00:00+00:00", datetime.now().astimezone().isoformat()
    for number, (status, started) in enumerate(
        [("finished", earlier), ("failed", now), ("running", now), ("failed", earlier)]
    ):
        jobs.write(tmp_path, job(number, ["seed=0"], status=status, started=started))
    assert jobs.progress(tmp_path, 2) == "3 of 4 (job-002.json), 1 done, 2 failed, about 2 min left"


def test_a_foreign_sweeper_has_no_total(tmp_path: Path) -> None:
    jobs.write(tmp_path, job(0, ["seed=0"], status="running"))
    assert jobs.progress(tmp_path, 0) == "1 (job-000.json)"


def test_the_table_and_labels_leave_out_what_is_the_same_in_all_jobs(work, capsys) -> None:
    assert work("seed=1,2", "model.sigma=0.2", "trainer.epochs=3") == 0
    assert "model.sigma" not in capsys.readouterr().out.partition("\nSweep\n")[2].partition("Best")[0]
    assert "model.sigma" in (work.sweep() / "results.csv").read_text()
    assert json.loads((work.sweep() / "sweep.json").read_text())["total"] == 2


def test_an_error_that_is_no_number_is_never_the_best() -> None:
    found = [job(0, ["glimpses.count=2", "seed=0"], float("nan")), job(1, ["glimpses.count=2", "seed=1"], 3.0)]
    assert report.best_command(sweep(), found) == "attn train glimpses.count=2 seed=1"


def test_results_csv_has_the_best_first_and_those_without_an_error_last(tmp_path: Path) -> None:
    found = [job(0, ["seed=0"], float("nan")), job(1, ["seed=1"], status="failed")]
    report.write_results(tmp_path / "results.csv", [*found, job(2, ["seed=2"], 5.0), job(3, ["seed=3"], 2.0)])
    assert [line[0] for line in (tmp_path / "results.csv").read_text().splitlines()[1:]] == ["3", "2", "0", "1"]


def test_the_best_evaluation_names_its_threads_as_attn_eval_does() -> None:
    best = job(0, ["run=outputs/A", "split=validation"], 1.0)
    best["result"]["threads"] = 2
    plan_ = plan.Plan("eval", (), (), "grid", (), (), 1)
    assert report.best_command(plan_, [best]) == "attn eval run=outputs/A split=validation threads=2"


def test_jobs_that_failed_at_once_do_not_shorten_what_is_left(tmp_path: Path) -> None:
    plan.begin(tmp_path, sweep(total=12))
    now = datetime.now().astimezone().isoformat()
    for number, (status, seconds) in enumerate([("finished", 60.0), ("failed", 0.1), ("running", None)]):
        jobs.write(tmp_path, job(number, ["seed=0"], status=status, started=now) | {"seconds": seconds})
    assert jobs.progress(tmp_path, 2).endswith("about 10 min left")
