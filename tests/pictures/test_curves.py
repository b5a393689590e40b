"""Curves from metrics.csv as runs leave it: resumed, cut, with missing columns."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from PIL import Image

from attn_cli.errors import Refused
from attn_cli.pictures import curves
from attn_cli.pictures.curves import learning_curves, mc_curve, read_metrics

WHOLE = """epoch,step,train_loss,train_error,reward,val_error,lr,seconds
1,390,2.0,60,0.4,50,0.001,8
2,780,1.0,20,0.8,3.5,0.001,16
3,1170,0.5,5,0.95,2.5,0.001,24
4,1560,0.4,4,0.96,2.5,0.001,32
"""


def colours(path) -> set[tuple[int, ...]]:
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return {tuple(int(v) for v in row) for row in np.unique(pixels, axis=0)}


def points(line: Line2D) -> list[list[float]]:
    return np.asarray(line.get_xydata()).tolist()


def rgb(name: str) -> tuple[int, ...]:
    return tuple(int(name[i : i + 2], 16) for i in (1, 3, 5))


def test_panels_values_and_the_best_marked(tmp_path) -> None:
    (tmp_path / "metrics.csv").write_text(WHOLE)
    written = learning_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert {rgb(c) for c in (curves.VALIDATION, curves.TRAIN, curves.REWARD, curves.BEST)} <= colours(written)
    figure = curves.learning_figure(read_metrics(tmp_path / "metrics.csv"))
    assert [ax.get_title() for ax in figure.axes] == ["training loss", "reward", "error"]
    loss, reward, error = figure.axes
    assert points(loss.lines[0]) == [[1, 2.0], [2, 1.0], [3, 0.5], [4, 0.4]]
    assert [y for _, y in points(reward.lines[0])] == [0.4, 0.8, 0.95, 0.96]
    train, validation, best = error.lines
    assert [y for _, y in points(train)] == [60, 20, 5, 4]
    assert [y for _, y in points(validation)] == [50, 3.5, 2.5, 2.5]
    assert points(best) == [[3, 2.5]]  # the first of equals
    assert best.get_label() == "best 2.50 %, epoch 3"
    assert error.get_yscale() == "log" and error.get_ylabel() == "error (%)"


def test_missing_columns_and_empty_cells(tmp_path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,val_error,other\n1,,x\n2,9.0,\n3,nan,\n4,8.0\n5,inf,\n6")
    written = learning_curves(tmp_path / "metrics.csv", tmp_path / "c.png")
    seen = colours(written)
    assert rgb(curves.VALIDATION) in seen and rgb(curves.REWARD) not in seen and rgb(curves.TRAIN) not in seen
    series = read_metrics(tmp_path / "metrics.csv")
    assert series == {"train_loss": {}, "reward": {}, "train_error": {}, "val_error": {2: 9.0, 4: 8.0}}
    (error,) = curves.learning_figure(series).axes
    assert points(error.lines[-1]) == [[4, 8.0]]
    (tmp_path / "loss.csv").write_text("train_loss,epoch\n0.5,0\n")
    (loss,) = curves.learning_figure(read_metrics(tmp_path / "loss.csv")).axes
    assert points(loss.lines[0]) == [[0, 0.5]]


def test_attempts_one_after_another(tmp_path) -> None:
    again = "step,epoch,val_error\n1000,3,2.2\n,3,2.1\n1500,4,1.9\n"  # resumed in epoch 3, with other columns
    (tmp_path / "metrics.csv").write_text(WHOLE + "5,1950,0.3,3,0.97,1.0,0.001,40\n" + again + "5,tru")
    series = read_metrics(tmp_path / "metrics.csv")
    assert series["val_error"] == {1: 50, 2: 3.5, 3: 2.1, 4: 1.9}
    assert series["train_loss"] == {1: 2.0, 2: 1.0}  # what came after the point of resumption no longer counts


@pytest.mark.parametrize("text", ["", "epoch,val_error\n", "\0\0", "no,columns,here\n1,2,3\n"])
def test_nothing_to_draw_still_makes_a_picture(tmp_path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    assert Image.open(learning_curves(tmp_path / "metrics.csv", tmp_path / "c.png")).width > 300


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(Refused, match="metrics.csv"):
        learning_curves(tmp_path / "metrics.csv", tmp_path / "c.png")
    assert not list(tmp_path.iterdir())


def test_error_against_m_with_standard_errors(tmp_path) -> None:
    rows = [
        {"mc_samples": 4, "error": 1.5, "standard_error": 0.1},
        {"mc_samples": 1, "error": 2.5, "standard_error": 0.3},
        {"mc_samples": 2, "error": 2.0},
    ]
    assert rgb(curves.VALIDATION) in colours(mc_curve(rows, tmp_path / "mc.png"))
    (ax,) = curves.mc_figure(rows).axes
    assert points(ax.lines[0]) == [[1, 2.5], [2, 2.0], [4, 1.5]]
    (bars,) = (c for c in ax.collections if isinstance(c, LineCollection))
    ends = [[tuple(point) for point in segment] for segment in bars.get_segments()]
    assert ends == [[(1, 2.2), (1, 2.8)], [(2, 2.0), (2, 2.0)], [(4, 1.4), (4, 1.6)]]


def test_validation_errors_of_several_runs(tmp_path) -> None:
    (tmp_path / "a.csv").write_text(WHOLE)
    (tmp_path / "b.csv").write_text("epoch,val_error\n1,40\n2,2.0\n")
    (tmp_path / "c.csv").write_text("epoch,val_error\n")
    runs = {"k=1": tmp_path / "a.csv", "k=2": tmp_path / "b.csv", "k=3": tmp_path / "c.csv"}
    assert Image.open(curves.comparison(runs, tmp_path / "curves.png")).size[0] > 500
    (ax,) = curves.comparison_figure({label: read_metrics(path) for label, path in runs.items()}).axes
    assert [line.get_label() for line in ax.lines] == ["k=2  (best 2.00 %)", "k=1  (best 2.50 %)"]  # best first
    assert points(ax.lines[0]) == [[1, 40], [2, 2]] and ax.get_yscale() == "log"
    assert curves.comparison_figure({"k=3": read_metrics(tmp_path / "c.csv")}).axes[0].lines[:] == []
    no_formula = {"logger.project='$\\1$'": tmp_path / "b.csv"}
    assert curves.comparison(no_formula, tmp_path / "dollars.png").exists()
