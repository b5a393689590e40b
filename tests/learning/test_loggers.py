"""Every logger of the `logger` group writes what it is given into the run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from attn_cli.config.schema import Logger
from attn_cli.errors import Refused
from attn_cli.learning.reporting import MetricsFile, ProgressReport, make_logger


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_logger_writes_into_the_run_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    logger = make_logger(Logger(name), folder)
    logger.log_metrics({"val_error": 1.5}, 10)
    logger.finalize("success")
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert written and all(folder in p.parents for p in written)


@pytest.mark.parametrize("name", ["csv", "none"])
def test_the_others_need_no_package(name: str, tmp_path: Path) -> None:
    assert make_logger(Logger(name), tmp_path) is False


@pytest.mark.parametrize(
    "content",
    [b"epoch;step;train_loss\n1;8;0.5\n", b"epoch,step\n1.0,8\n", b"step,epoch\n8\n", b"\xff\xfe\x00", b'"epoch\n1\n'],
)
def test_a_metrics_file_that_was_edited_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(Refused, match="metrics.csv is not what a run writes"):
        MetricsFile(path)


def test_a_log_that_finds_no_room_is_refused() -> None:
    row = {"epoch": 1, "train_loss": 1.0, "train_error": 50.0, "val_error": None, "seconds": 1.0}
    with pytest.raises(Refused, match="/dev/full could not be written"):
        ProgressReport(2, Path("/dev/full")).epoch(row)
