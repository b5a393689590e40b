"""What a run tells while it trains: metrics.csv, a progress bar on a terminal, a plain line an epoch elsewhere."""

from __future__ import annotations

import csv
import io
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from attn_cli.config import schema
from attn_cli.errors import Refused
from attn_cli.files import append, write_atomically

COLUMNS = (
    "epoch", "step", "train_loss", "cross_entropy", "reinforce", "baseline", "reward", "train_error", "val_error", "lr",
    "seconds",
)  # fmt: skip
SOMETIMES = ("caught", "mean_glimpses")  # columns that only games have, or models that stop by themselves
REFRESH = 25  # steps between two updates of the bar


class MetricsFile:
    """metrics.csv: one row an epoch; errors in %. A resumed run drops the rows that it is about to repeat; a file that
    holds anything else is refused.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.exists():
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    self.rows = list(csv.DictReader(file, strict=True))
                for row in self.rows:
                    int(row["epoch"])
            except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
                raise Refused(f"{path} is not what a run writes: restore it, or delete it to go on without.") from error

    def add(self, row: dict[str, Any]) -> None:
        """Append one epoch and replace the file as a whole."""
        columns = (*COLUMNS, *(name for name in SOMETIMES if name in row))
        new = {name: "" if row.get(name) is None else str(row[name]) for name in columns}
        self.rows = [old for old in self.rows if int(old["epoch"]) < row["epoch"]] + [new]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, text.getvalue())


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """A finished epoch in words."""
    validation = "" if row["val_error"] is None else f"  validation {row['val_error']:6.2f} %"
    if row.get("mean_glimpses") is not None:
        validation += f" with {row['mean_glimpses']:.2f} glimpses"
    line = f"epoch {row['epoch']:>3}/{epochs}  loss {row['train_loss']:.4f}"
    return f"{line}  training {row['train_error']:6.2f} %{validation}  {row['seconds']:.0f} s"


class ProgressReport(Callback):
    """A rich bar on a terminal; plain lines where nobody watches. `epoch` is called with the row of a finished
    epoch.
    """

    def __init__(self, epochs: int, log_file: Path | None = None):
        self.epochs = epochs
        self.log_file = log_file
        self.bar: Progress | None = None
        if Console(file=sys.stdout).is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, refresh_per_second=4)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.bar is not None:
            total = self.epochs * trainer.num_training_batches
            self.task = self.bar.add_task("training", total=total, completed=trainer.global_step, note="")
            self.bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.bar is not None and trainer.global_step % REFRESH == 0:
            self.bar.update(self.task, completed=trainer.global_step)

    def epoch(self, row: dict[str, Any]) -> None:
        """Print, and add to log.txt, one line."""
        line = epoch_line(row, self.epochs)
        if self.bar is not None:
            self.bar.update(self.task, completed=row["step"], note=line)
        else:
            print(line, flush=True)
        if self.log_file is not None:
            append(self.log_file, line)

    def stop(self) -> None:
        """Leave the terminal as it was; safe to call twice."""
        if self.bar is not None:
            self.bar.stop()


def check_logger(config: schema.Logger) -> None:
    """Raises Refused, before a run folder is made, if the package of a logger is not installed."""
    if config.name in ("tensorboard", "wandb", "mlflow") and find_spec(config.name) is None:
        raise Refused(
            f"logger={config.name} needs a package that is not installed: "
            f"run `pip install {config.name}` or use logger=csv."
        )


def make_logger(config: schema.Logger, folder: Path) -> Any:
    """The Lightning logger of `logger=tensorboard|wandb|mlflow`, or False."""
    from pytorch_lightning import loggers

    if config.name == "tensorboard":
        return loggers.TensorBoardLogger(folder, name="tensorboard", version="")
    if config.name == "wandb":
        return loggers.WandbLogger(project=config.project, name=folder.name, save_dir=folder)
    if config.name == "mlflow":
        place = folder.resolve() / "mlflow"
        place.mkdir(exist_ok=True)
        return loggers.MLFlowLogger(
            experiment_name=config.project,
            run_name=folder.name,
            tracking_uri=f"sqlite:///{place / 'runs.db'}",
            artifact_location=place.as_uri(),
        )
    return False
