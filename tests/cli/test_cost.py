"""`attn cost`: Table 5 of DRAM, any configuration, expected lengths, the curve, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from attn_cli import cli, runs
from attn_cli.commands import cost, cost_curve
from attn_cli.config import registry, schema
from attn_cli.errors import Refused
from attn_cli.papers import records
from attn_cli.papers.index import TABLES

READER = {"model": schema.Dram(), "data": schema.Svhn(), "glimpses": schema.Glimpses(3, 12)}
SMALL = schema.ConvNet(filters=(4,), kernels=(5,), strides=(2,), pools=(2,), pool_padding=0, hidden=(16,), dropout=0.0)


def total(result: dict, what: str = "longest sequence", samples: int = 1, readers: int = 1) -> dict:
    (row,) = (
        row
        for row in result["totals"]
        if row["what"].startswith(what) and (row["samples"], row["readers"]) == (samples, readers)
    )
    return row


def test_table_5(capsys):
    result = cost.run(schema.Cost(table="dram/5", samples=4))
    cells = {(c["quantity"].partition(",")[0], c["size"], c["column"]): c for c in result["cells"]}
    assert len(cells) == 16
    for quantity, side in (("multiply-adds", 54), ("multiply-adds", 110), ("parameters", 54), ("parameters", 110)):
        cell = cells[quantity, side, "10 layer CNN"]
        assert cell["ours"] == pytest.approx(cell["published"], rel=0.1) and cell["reproducible"]
    published = [(2.1, 0.2, 0.35, 0.7), (8.5, 0.2, 1.1, 2.2), (51, 14, 14, 28), (169, 14, 14, 28)]
    assert [cell["published"] for cell in result["cells"]] == [number for row in published for number in row]
    for side in (54, 110):
        one, average, both = (cells["multiply-adds", side, name] for name in cost.COLUMNS[1:])
        assert one["ours"] <= one["published"] == 0.2 and one["at_most"] and one["samples"] is None
        assert one["ours"] < average["ours"] < 4 * one["ours"]  # the context is worked out once
        assert both["ours"] == 2 * average["ours"]
        assert not average["reproducible"] and not both["reproducible"] and average["samples"] == 4
        assert average["passes"] == pytest.approx({54: 1.8, 110: 5.7}[side], abs=0.15)
        assert cells["parameters", side, "F-B DRAM MC avg."]["ours"] == 2 * cells["parameters", side, "DRAM"]["ours"]
    shown = capsys.readouterr().out
    assert shown.count("not reproducible") == 4 and shown.count("M = 4") == 4 and shown.count("agrees") == 2


def test_the_records_of_table_5_are_what_the_command_says():
    """To the decimals that are recorded."""
    cells = cost.run(schema.Cost(table="dram/5", samples=10))["cells"]
    ours = {(c["quantity"].partition(",")[0], c["column"], c["size"]): c["ours"] for c in cells}
    columns = {"convnet": "10 layer CNN", "single": "DRAM", "both-average": "F-B DRAM MC avg."}
    checked = 0
    for table, quantity in (("dram/5", "multiply-adds"), ("dram/5-parameters", "parameters")):
        for cell, (record,) in records.load(TABLES[table]).items():
            name, _, side = cell.rpartition("-")
            decimals = len(str(record.value).partition(".")[2])
            assert round(ours[quantity, columns[name], int(side)], decimals) == record.value, cell
            checked += 1
    assert checked == 10


def test_a_reader_of_house_numbers(capsys):
    """By hand: the layers of section 8.3 with two scales, and three glimpses an answer."""
    result = cost.run(schema.Cost(**READER, scales=schema.Scales(2), samples=10))
    convolutions = 8 * 8 * 64 * 25 + 6 * 6 * 64 * 64 * 9 + 4 * 4 * 128 * 64 * 9
    glimpse = 2 * convolutions + 2 * 2048 * 1024 + 2 * 1024
    lstms = (512 + 1024) * 2048 + (512 + 512) * 2048
    emission, answer = 512 * 1024 + 1024 * 2, 512 * 1024 + 1024 * 11
    context = convolutions + 2048 * 1024 + 1024 * 512
    step = 3 * (glimpse + lstms + emission) + answer
    expected = 1 + (5137 + 2 * 18071 + 3 * 8574 + 4 * 1413 + 5 * 9) / (5137 + 18071 + 8574 + 1413 + 9)
    for what, answers in (("longest sequence", 6), ("expected sequence", expected)):
        for M in (1, 10):
            for readers in (1, 2):
                row = total(result, what, M, readers)
                assert row["answers"] == pytest.approx(answers)
                assert row["multiply_adds"] == pytest.approx(readers * (context + M * answers * step), abs=2)
                assert row["flops"] == 2 * row["multiply_adds"] < row["training_multiply_adds"]
                assert row["parameters"] == readers * total(result)["parameters"]
    assert len(result["totals"]) == 8
    shown = capsys.readouterr().out
    assert "context network (once an image)" in shown and "expected sequence, 2.19 labels" in shown


def test_of_an_experiment_by_its_words(tmp_path, capsys):
    path = tmp_path / "cost.json"
    assert cli.main(["cost", "experiment=ram/table2b_conv", f"output={path}"]) == 0, capsys.readouterr().err
    result = json.loads(path.read_text())
    (row,) = result["totals"]
    layers = 8 * 100, 19 * 19 * 8 * 86, 86 * 10
    assert row["parameters"] == sum(layers) + 8 + 86 + 10
    assert row["multiply_adds"] == 19 * 19 * layers[0] + layers[1] + layers[2]
    assert (row["what"], row["samples"], result["height"]) == ("one answer", 1, 100)


def test_of_a_run_on_images_of_another_size(tmp_path):
    made = runs.create(schema.Config(model=SMALL, data=schema.Scenes(name="digits", source="digits")), tmp_path)
    for size, places in ((None, 14 * 14), ((56,), 28 * 28), ((56, 28), 28 * 14)):
        row = total(cost.run(schema.Cost(run=str(made.path), size=size)), "one")
        assert row["multiply_adds"] == places * 4 * 25 + places // 4 * 4 * 16 + 160


def test_an_attention_model_costs_the_same_at_any_size():
    costs = {size: cost.run(schema.Cost(size=size))["totals"] for size in ((28,), (1000,))}
    assert costs[28,] == costs[1000,]


@pytest.mark.parametrize("name", [name for name in registry.MODELS if name != "timm"])
def test_parts_are_the_whole_of_every_model(name, tmp_path, capsys):
    data = {"rsam": "cifar10", "stn": "svhn", "ram_catch": "catch"}.get(name, "svhn" if "dram" in name else "digits")
    words = {"stn": ["glimpses=1"]}.get(name, [])
    if name in ("soft_ram", "draw_reader", "stn"):
        words += ["scales=1", "glimpses.size=12"]
    words += ["size=224"] if name.startswith("convnet") else []
    path = tmp_path / "cost.json"
    assert cli.main(["cost", f"model={name}", f"data={data}", *words, f"output={path}"]) == 0, capsys.readouterr().err
    result = json.loads(path.read_text())
    parts = sum(part["multiply_adds"] * part["calls"] for part in result["parts"])
    assert parts == result["totals"][0]["multiply_adds"] > 0
    assert f"{result['parts'][0]['multiply_adds']:,d}" in capsys.readouterr().out


def test_a_given_length():
    result = cost.run(schema.Cost(**READER, length=5))
    assert total(result, "expected")["multiply_adds"] == total(result)["multiply_adds"]


def test_the_curve_goes_from_the_smallest_images_to_the_largest() -> None:
    assert (
        cost_curve.SIDES[0] == 28
        and cost_curve.SIDES[-1] == 1000
        and list(cost_curve.SIDES) == sorted(cost_curve.SIDES)
    )
    assert cost_curve.LARGEST_WHOLE == 256 in cost_curve.SIDES


def test_the_curve(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost_curve, "COMPARED", schema.Config(model=SMALL))
    monkeypatch.setattr(cost_curve, "SIDES", (28, 40, 300))
    monkeypatch.setattr(cost_curve, "SECONDS", 0.0)
    path = tmp_path / "cost.png"
    rows = cost.run(schema.Cost(curve=str(path), threads=1))["curve"]
    assert [(row["model"], row["side"]) for row in rows] == [
        (model, side) for model in ("convnet_10", "ram") for side in (28, 40, 300)
    ]
    whole, part = rows[:3], rows[3:]
    assert whole[0]["multiply_adds"] < whole[1]["multiply_adds"] < whole[2]["multiply_adds"]
    assert len({row["multiply_adds"] for row in part}) == 1
    assert [row["seconds"] is None for row in rows] == [False, False, True, False, False, False]
    assert all(row["seconds"] is None or row["seconds"] > 0 for row in rows)
    assert Image.open(path).size[0] > 400
    assert str(path) in capsys.readouterr().out


def test_what_does_not_fit_into_memory_is_not_timed(monkeypatch):
    monkeypatch.setattr(cost_curve, "COMPARED", schema.Config(model=SMALL))
    monkeypatch.setattr(cost_curve, "SIDES", (28,))
    monkeypatch.setattr(cost_curve, "free_memory", lambda device: 0)
    settings = schema.Config()
    rows = cost_curve.measure(settings, cost.shape_of(settings.data), cost.choose_device("cpu"))
    assert [row["seconds"] for row in rows] == [None, None]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"curve": "cost.jpg"}, "curve=cost.jpg must name a .png file."),
        ({"curve": "no/such/cost.png"}, "curve=no/such/cost.png is in a folder that does not exist."),
        ({"output": "no/such/cost.json"}, "output=no/such/cost.json is in a folder that does not exist."),
        ({"table": "dram/5", "size": (54,), "length": 2}, "leave out size and length."),
        ({"size": (1, 2, 3)}, "size must be one side, or height and width such as [54, 110], not [1, 2, 3]."),
        ({"length": 2}, "length=2 is for sequences; data=digits has one label an image."),
        ({**READER, "length": 6}, "length=6 is more than the 5 labels of the longest sequence."),
        ({"run": "nowhere"}, "There is no run folder nowhere. There are no runs in this folder."),
        ({"model": SMALL, "size": (2,)}, "Images of 2×2 are too small for model=convnet_10"),
    ],
)
def test_bad_input(keys, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused) as refused:
        cost.run(schema.Cost(**keys))
    assert says in str(refused.value)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["table=dram/6"], "table has no choice 'dram/6'."),
        (["table=dram/5", "model=ram"], "table=dram/5 has networks and sizes of its own: leave out model."),
        (["table=dram/5", "experiment=ram/table1a_6"], "leave out experiment."),
        (
            ["run=there", "experiment=ram/table1a_6"],
            "run=there has a network and data of its own: leave out experiment.",
        ),
        (
            ["run=there", "data=svhn", "glimpses.count=2"],
            "run=there has a network and data of its own: leave out data and glimpses.",
        ),
        (["samples=0"], "samples must be at least 1"),
        (["size=5000"], "size[0] must be at least 1 and at most 4096, not 5000."),
        (["sieze=54"], "sieze is not a known key. Did you mean "),
        (["model=rum"], "model=rum is not available. Did you mean 'ram'?"),
        (["model.sigmaa=1"], "model.sigmaa is not a known key."),
    ],
)
def test_words_that_are_refused(words, says, capsys):
    assert cli.main(["cost", *words]) == 1
    assert says in capsys.readouterr().err
