"""Tables as text: what a person reads in a pipe."""

from __future__ import annotations

import io
from typing import Any

import pytest

from attn_cli.pictures import tables
from attn_cli.pictures.cost_tables import amount, bench_table
from attn_cli.pictures.tables import (
    as_text,
    mc_table,
    result_table,
    runs_table,
    show,
    sweep_summary,
    sweep_table,
)


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "|" in line]


def job(glimpses: int, seed: int, val: float | None, status: str = "finished") -> dict:
    test = None if val is None else val + 1
    return {
        "overrides": {"glimpses": glimpses, "seed": seed},
        "val_error": val,
        "test_error": test,
        "seconds": 60,
        "status": status,
    }


def test_result_with_interval_and_unknown_keys() -> None:
    result = {
        "test_error": 1.294,
        "val_error": 1.5,
        "test_error_interval": [1.08, 1.534],
        "mc_samples": 10,
        "seconds": 512.3,
        "images_per_second": 12034.4,
        "versions": {"attn": "0.1", "torch": "2.13.0"},
        "digests": {"test": "abc"},
        "commit": None,
        "policy": "[random]",
    }
    rows = dict(cells(as_text(result_table(result))))
    assert rows["test error"] == "1.29 %  (95 % interval 1.08 to 1.53)"
    assert rows["validation error"] == "1.50 %"
    assert rows["paths averaged"] == "10"
    assert rows["time"] == "8 min 32 s"
    assert rows["images per second"] == "12,034"
    assert rows["versions"] == "attn 0.1, torch 2.13.0"
    assert rows["policy"] == "[random]"  # not taken for markup
    assert "commit" not in rows and "digests" not in rows
    assert dict(cells(as_text(result_table({"mc_samples": 0}))))["paths averaged"] == "the mean-location path"


def test_evaluation_repeated_over_seeds() -> None:
    evaluation = {"val_error": 2.0, "val_error_interval": [1.5, 2.5], "val_error_deviation": 0.066, "repeats": 3}
    rows = dict(cells(as_text(result_table({**evaluation, "digest": "0123456789abcdef"}))))
    assert rows["validation error"] == "2.00 %  (95 % interval 1.50 to 2.50)  ± 0.07 over 3 repeats"
    assert list(rows) == ["validation error", "repeats"]
    once = dict(cells(as_text(result_table({**evaluation, "repeats": 1, "val_error_deviation": 0.0}))))
    assert once["validation error"] == "2.00 %  (95 % interval 1.50 to 2.50)"


def test_runs_in_the_order_given_with_gaps() -> None:
    rows: list[dict[str, Any]] = [
        {"run": "mnist-ram-6g-20260101-120000-ab12", "data": "mnist", "model": "ram", "glimpses": 6, "seed": 3,
         "learning_rate": 0.0003, "val_error": 1.3, "test_error": 1.2, "seconds": 3725, "status": "finished"},
        {"run": "x[red]y", "status": "failed"},
    ]  # fmt: skip
    _, first, second = cells(as_text(runs_table(rows)))
    name = "mnist-ram-6g-20260101-120000-ab12"
    assert first == [name, "mnist", "ram", "6", "3", "0.0003", "1.30", "1.20", "1 h 02 min", "finished"]
    assert second == ["x[red]y", *["–"] * 8, "failed"]


def test_mc_table() -> None:
    rows = [{"mc_samples": 1, "error": 2.0, "standard_error": 0.123}, {"mc_samples": 2, "error": 1.5}]
    assert cells(as_text(mc_table(rows)))[1:] == [["1", "2.00", "0.12"], ["2", "1.50", "–"]]
    assert len(cells(as_text(mc_table([])))) == 1


def test_sweep_groups_seeds_and_sorts_by_validation_error() -> None:
    jobs = [
        job(2, 1, 5.0),
        job(4, 1, 3.0),
        job(6, 1, None, "failed"),
        job(2, 2, 6.0),
        job(4, 2, float("nan"), "failed"),
    ]
    first, second, third = sweep_summary(jobs)
    assert first["overrides"] == {"glimpses": "4"}
    assert (first["val_error"], first["val_error_std"], first["seeds"]) == (3.0, None, 1)
    assert second["val_error"] == 5.5
    assert second["val_error_std"] == pytest.approx(0.7071, abs=1e-4)
    assert (third["val_error"], third["seeds"], third["status"]) == (None, 0, "failed")
    head, *rows = cells(as_text(sweep_table(jobs)))
    assert head == ["glimpses", "val %", "test %", "seeds", "time", "status"]
    assert rows == [
        ["4", "3.00", "4.00", "1", "1 min 00 s", "1 finished, 1 failed"],
        ["2", "5.50 ± 0.71", "6.50 ± 0.71", "2", "1 min 00 s", "finished"],
        ["6", "–", "–", "0", "1 min 00 s", "failed"],
    ]


def test_evaluations_on_the_test_set_count_as_seeds() -> None:
    jobs = [{"overrides": {"seed": s}, "val_error": None, "test_error": float(s), "status": "finished"} for s in (1, 3)]
    assert cells(as_text(sweep_table(jobs)))[1:] == [["–", "2.00 ± 1.41", "2", "–", "finished"]]


def test_runs_of_one_seed_count_once() -> None:
    """Such as those of seed=1,2 with trainer.parallel_seeds=2: seed 2 is trained twice."""
    rows = [(1, 1.0), (2, float("nan")), (2, 2.0), (3, 3.0), (3, 3.5)]
    jobs = [{"overrides": {"seed": str(s)}, "val_error": error, "status": "finished"} for s, error in rows]
    assert cells(as_text(sweep_table(jobs)))[1:] == [["2.00 ± 1.00", "–", "3", "–", "finished"]]


def test_sweep_over_seeds_alone_is_one_row() -> None:
    jobs = [{"overrides": {"seed": s}, "val_error": float(s), "status": "finished"} for s in (1, 2, 3)]
    assert cells(as_text(sweep_table(jobs)))[1:] == [["2.00 ± 1.00", "–", "3", "–", "finished"]]


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999"), (999.5, "1 k"), (999_600_000, "1 G"), (11_314_000, "11.3 M"), (698e9, "698 G"), (2.09e12, "2.09 T")],
)
def test_large_numbers_have_three_digits_and_no_exponent(count: float, text: str) -> None:
    assert amount(count) == text


def test_bench_table() -> None:
    row = {"shape": "28×28", "compiled": True, "step_ms": 3.21, "steps_per_second": 311.5, "images_per_second": 39876.5,
           "sgemm_share": 0.482, "ratio_to_reference": 21.04, "lightning_share": 0.052}  # fmt: skip
    expected = ["28×28", "yes", "3.2", "311.5", "39,876", "0.48", "21.0", "5.2%", "–", "–"]
    assert cells(as_text(bench_table([row])))[1] == expected
    row |= {
        "peak_memory_mb": 1234.5,
        "kernel_launches": 321.0,
        "busy_share": 0.876,
        "gradient_error": 0.00213,
        "parallel_ratio": 1.234,
        "cuda_graphs": True,
    }
    head, *rows = cells(as_text(bench_table([row])))
    assert head[-5:] == ["peak MB", "launches", "GPU busy", "gradient error", "× one by one"]
    assert rows[0][1] == "as graphs" and rows[0][-5:] == ["1,234", "321", "88%", "2.1e-03", "1.23"]


def test_piped_text_is_plain_whole_and_fits_any_encoding(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")  # narrower than the table
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    jobs = [job(2, 1, 5.0), job(2, 2, 6.0), job(4, 1, None, "failed")]
    table = sweep_table(jobs)
    pipe = io.StringIO()
    show(table, pipe)
    assert pipe.getvalue() == as_text(table)
    assert "\x1b" not in pipe.getvalue() and "5.50 ± 0.71" in pipe.getvalue()
    raw = io.BytesIO()
    ascii_pipe = io.TextIOWrapper(raw, encoding="ascii")
    show(table, ascii_pipe)
    ascii_pipe.flush()
    assert b"5.50 +/- 0.71" in raw.getvalue() and b"?" not in raw.getvalue()


def test_a_terminal_narrower_than_the_table_gets_whole_words(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("FORCE_COLOR", "1")
    terminal = io.StringIO()
    show(runs_table([{"run": "mnist-ram-6g-20260101-120000-ab12", "data": "mnist", "status": "finished"}]), terminal)
    assert "\x1b" in terminal.getvalue()
    assert "mnist-ram-6g-20260101-120000-ab12" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.04, "0.0 s"),
        (59.4, "59.4 s"),
        (59.7, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (7260, "2 h 01 min"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert tables.duration(seconds) == text
