"""Records of what was measured: their summary, and what is read and written where."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, stdev

import pytest

from attn_cli.errors import Refused
from attn_cli.inference.intervals import wilson
from attn_cli.papers import records
from attn_cli.papers.cells import ERROR, Cell, Table, Train
from attn_cli.papers.index import TABLES
from attn_cli.papers.records import Record, add, load, summarise

TOY = Table("toy/1", "Toy", tuple(Cell(name, name, Train("demo")) for name in "abcdefgh"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a package without records of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(records, "PACKAGED", tmp_path / "site-packages" / "attn_cli" / "papers" / "measured")
    return tmp_path


def one(seed: int, value: float, **more: object) -> Record:
    return Record((seed,), value, images=1000, **more)  # type: ignore[arg-type]


def test_what_took_its_time_says_how_long_to_expect() -> None:
    """Else `attn reproduce --budget` would never start it."""
    for table in TABLES.values():
        for name in load(table):
            how = next(cell.how for cell in table.cells if cell.name == name)
            assert not isinstance(how, Train) or how.cpu is not None, f"{table.name} {name}"


def test_no_time_of_a_machine_with_nothing_else_to_do_is_far_beyond_the_expected_one() -> None:
    """Else a budget would be overrun."""
    for table in TABLES.values():
        for name, found in load(table).items():
            how = next(cell.how for cell in table.cells if cell.name == name)
            for record in found:
                if isinstance(how, Train) and how.cpu and record.seconds and not record.busy:
                    assert record.seconds < 1.5 * how.cpu, f"{table.name} {name}, seeds {record.seeds}"


def test_the_time_is_that_of_machines_with_nothing_else_to_do_if_any() -> None:
    busy, alone = "1 of 2 busy cores, A", "1 of 2 cores, A"
    runs = [one(n, 4.0, seconds=60.0 * n, hardware=hardware) for n, hardware in enumerate((alone, busy, alone), 1)]
    assert summarise(runs).seconds == pytest.approx(120)
    assert summarise(runs[:2]).seconds == 60 and summarise(runs[1:2]).seconds == 120
    assert summarise(runs).hardware == (alone, busy)


def test_mean_deviation_and_interval_over_seeds() -> None:
    values = [4.0, 5.0, 7.5]
    found = summarise([one(n, value, seconds=60.0 * n, validation=value + 1) for n, value in enumerate(values, 1)])
    assert found.seeds == (1, 2, 3)
    assert found.value == pytest.approx(fmean(values)) and found.deviation == pytest.approx(stdev(values))
    assert found.validation == pytest.approx(fmean(values) + 1) and found.seconds == pytest.approx(120)
    assert found.interval == pytest.approx(wilson(55, 1000))  # the same 1000 images three times


def test_an_older_record_of_several_seeds_counts_as_its_seeds() -> None:
    values = [4.0, 5.0, 7.5, 3.25]
    older = Record((1, 2, 3), fmean(values[:3]), stdev(values[:3]), images=1000)
    found = summarise([older, one(4, values[3])])
    assert found.seeds == (1, 2, 3, 4)
    assert found.value == pytest.approx(fmean(values)) and found.deviation == pytest.approx(stdev(values))


def test_one_record_keeps_its_own_interval_and_gain() -> None:
    found = summarise([one(2, 5.0, interval=(4.0, 6.0), gain=(1.0, 0.5, 1.5))])
    assert (found.deviation, found.interval, found.gain) == (None, (4.0, 6.0), (1.0, 0.5, 1.5))
    assert summarise([one(2, 5.0)]).interval == pytest.approx(wilson(50, 1000))


def test_a_recorded_seed_stays(here: Path) -> None:
    add(TOY, "a", one(2, 5.0))
    add(TOY, "a", one(1, 4.0))
    add(TOY, "a", one(2, 9.0))
    assert [(record.seeds, record.value) for record in load(TOY)["a"]] == [((1,), 4.0), ((2,), 5.0)]


def test_several_writers_lose_nothing(here: Path) -> None:
    def fill(cell: str) -> None:
        for seed in range(1, 6):
            add(TOY, cell, one(seed, 1.0))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fill, "abcdefgh"))
    assert {cell: len(found) for cell, found in load(TOY).items()} == dict.fromkeys("abcdefgh", 5)


def test_outside_the_checkout_records_lie_beside_the_packaged_ones(here: Path) -> None:
    records.PACKAGED.mkdir(parents=True)
    (records.PACKAGED / "toy-1.json").write_text(records.as_json({"a": [one(1, 4.0)]}))
    add(TOY, "a", one(1, 9.0))  # recorded in the package
    add(TOY, "a", one(2, 5.0))
    own = json.loads((here / "outputs" / "reproduce" / "measured" / "toy-1.json").read_text())
    assert own == {"a": [{"seeds": [2], "value": 5.0, "images": 1000}]}
    assert [record.value for record in load(TOY)["a"]] == [4.0, 5.0]


def test_in_a_checkout_records_go_into_the_package(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    assert records.writable() == records.PACKAGED == repository / "attn_cli" / "papers" / "measured"


def test_a_record_survives_writing_and_reading(here: Path) -> None:
    full = one(3, 5.25, validation=5.5, interval=(4.0, 6.0), gain=(-1.0, -2.0, 0.0), epochs=40, seconds=12.5)
    add(TOY, "b", full)
    assert load(TOY)["b"] == [full]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not readable as JSON"),
        ("[]", "must map the cells of toy/1"),
        ('{"a": 1}', "must map the cells of toy/1"),
        ('{"z": []}', "records of z, which is not a cell of toy/1"),
        ('{"a": [{"seeds": [1]}]}', "a record of a needs seeds and value"),
        ('{"a": [{"seeds": [1], "value": "low"}]}', "a.value must be a number"),
        ('{"a": [{"seeds": [1], "value": 1, "interval": [1]}]}', "a.interval must be 2 numbers"),
        ('{"a": [{"seeds": [1], "value": 1, "valu": 1}]}', "a.valu is not a known key"),
        ("[" * 100_000, "not readable as JSON"),
        ('{"a": [], "b": [], "a": []}', "a stands there twice"),
        ('{"a": [{"seeds": [1], "value": 1, "value": 2}]}', "value stands there twice"),
        ('{"a": [{"seeds": [1, 3], "value": 1}, {"seeds": [3], "value": 2}]}', "two records of seed 3 of a"),
        ('{"a": [{"seeds": [1], "value": 408}]}', "a.value=408.* cannot be a test error in %"),
        ('{"a": [{"seeds": [1], "value": 4, "validation": -5}]}', "a.validation=-5.* cannot be"),
        ('{"a": [{"seeds": [1], "value": 4, "interval": [5, 3]}]}', "a.interval must be two numbers that rise"),
        ('{"a": [{"seeds": [1], "value": 4, "images": 0}]}', "images must be above 0"),
        ('{"a": [{"seeds": [-2], "value": 4}]}', "no seed below it"),
        ('{"a": [{"seeds": [1], "value": 4, "hardware": "a|b"}]}', "without | and line ends"),
    ],
)
def test_a_damaged_file_is_named(here: Path, text: str, says: str) -> None:
    path = here / "outputs" / "reproduce" / "measured" / "toy-1.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(Refused, match="toy-1.json.*" + says) as refused:
        load(TOY)
    assert "\n" not in str(refused.value)


def test_packaged_intervals_are_those_of_their_errors() -> None:
    """Within what rounding to two decimals can move them."""
    for table in TABLES.values():
        for cell, found in load(table).items():
            for record in found if table.unit == ERROR else []:
                assert record.images in (2000, 10_000) and record.hardware and record.commit and record.command
                low, high = wilson(record.value / 100 * record.images, record.images)
                assert record.interval is None or record.interval == pytest.approx((low, high), abs=0.011), cell


def test_every_packaged_file_is_of_a_table() -> None:
    names = {f"{name.replace('/', '-')}.json" for name in TABLES}
    assert {path.name for path in records.PACKAGED.glob("*")} <= names


def test_a_seed_that_the_package_has_by_now_counts_once(here: Path) -> None:
    add(TOY, "a", one(1, 9.0))
    add(TOY, "a", one(2, 5.0))
    records.PACKAGED.mkdir(parents=True)
    (records.PACKAGED / "toy-1.json").write_text(records.as_json({"a": [one(1, 4.0)]}))
    assert [record.value for record in load(TOY)["a"]] == [4.0, 5.0]


def test_seeds_of_other_test_images_have_no_interval_together() -> None:
    assert summarise([one(1, 5.0), Record((2,), 6.0, images=2000)]).interval is None
