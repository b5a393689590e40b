"""The papers' tables as data: what they refer to exists, what they quote is what the experiments quote."""

from __future__ import annotations

import re

import pytest

from attn_cli.commands import entry
from attn_cli.commands.reproducing import RECIPE, Step, check_alike, composed
from attn_cli.config.hydra_errors import choices
from attn_cli.errors import Refused
from attn_cli.papers import stand_ins
from attn_cli.papers.cells import Absent, Attend, Cell, Combine, Evaluate, Same, Table, Train, sources
from attn_cli.papers.index import TABLES, find_cells, find_table, resolve

CELLS = [(table, cell) for table in TABLES.values() for cell in table.cells]
NAMES = [f"{table.name}/{cell.name}" for table, cell in CELLS]
EXPERIMENTS = entry.conf_folder() / "experiment"
NO_CELL = {  # experiments that give no number of a table, or need images of the person's own
    "demo", "soft_ram/figure4", "birds/trunk", "birds/attention",
}  # fmt: skip
# Published errors in % that no experiment quotes, read from the papers once more.
BASELINES = {
    "ram/1a": {"fc-256": 1.35, "random": 42.85},
    "ram/1b": {"fc-64": 7.56, "fc-256": 3.7, "conv": 2.31},
    "ram/2a": {"fc-64": 28.96, "fc-256": 13.2, "conv": 7.83},
    "ram/2b": {"conv": 16.51},
    "dram/3": {"goodfellow": 3.96, "forward-average": 4.4, "both-average": 3.9},
    "dram/4": {"convnet-resized": 50, "focus": 5.7, "both-focus": 5.0, "both": 4.46},
    "dram/5": {"convnet-54": 2.1, "average-54": 0.35, "both-average-54": 0.7, "convnet-110": 8.5, "average-110": 1.1},
    "dram/5-parameters": {"convnet-54": 51, "single-54": 14, "both-average-54": 28, "convnet-110": 169},
    "soft_ram/1": {"ram-4": 9.41, "ram-8": 8.11},
    "soft_ram/2": {"dram-pair": 5, "dram-sum": 2.5},
    "soft_ram/3-64": {"forward-64-average": 4.3, "both-64": 3.9, "both-64-average": 3.65, "five-layers": 3.4},
    "soft_ram/3-128": {"forward-128-average": 5.2, "both-128": 4.45, "both-128-average": 4.35, "five-layers": 4.34},
    "soft_ram/4": {"jaderberg": 15.9, "whole-ten-crops": 21.43, "true-boxes-ten-crops": 20.37, "attended": 20.23},
}


def test_every_table_of_the_papers_is_there() -> None:
    ram = [f"ram/{n}" for n in ("1a", "1b", "2a", "2b", "stop", "scales", "catch", "track")]
    dram = [f"dram/{n}" for n in (1, 2, 3, 4, 5, "5-parameters", 6, "section-5")]
    dram += [f"dram/{n}" for n in ("3-mnist", "4-mnist", "3-painted", "4-painted", "6-mnist")]
    soft_ram = [f"soft_ram/{n}" for n in (1, 2, "3-64", "3-128", 4, "track", "3-mnist", "3-painted")]
    assert list(TABLES) == [*ram, *dram, *soft_ram, "rsam/figure-3", "rsam/figure-4"]


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_names_are_unique_and_versions_have_a_column(table: Table) -> None:
    assert table.name.count("/") == 1
    assert len({cell.name for cell in table.cells}) == len(table.cells)
    quoted = {published.version for cell in table.cells for published in cell.published}
    assert quoted <= set(table.versions)


@pytest.mark.parametrize(("table", "cell"), CELLS, ids=NAMES)
def test_what_a_cell_refers_to_gives_it_what_it_needs(table: Table, cell: Cell) -> None:
    """Runs for evaluations, a run or a file to start from; and no cell waits for itself."""
    for reference in sources(cell.how):
        source = resolve(table, reference)[1].how
        by_file = isinstance(cell.how, Train) and cell.how.by == "data.path"
        if isinstance(cell.how, Same):
            assert not isinstance(source, Same)
        else:
            assert isinstance(source, Attend if by_file else Train)
    waiting = [(table, reference) for reference in sources(cell.how)]
    while waiting:
        other, earlier = resolve(*waiting.pop())
        assert (other, earlier) != (table, cell)
        waiting += [(other, reference) for reference in sources(earlier.how)]


@pytest.mark.parametrize(("table", "cell"), CELLS, ids=NAMES)
def test_the_command_of_a_cell_composes(table: Table, cell: Cell) -> None:
    """And its packaged records were trained as long as it is now."""
    how = cell.how
    if isinstance(how, Train):
        start = [] if how.start is None else [f"{how.by}=RUN"]
        config = composed("train", [f"experiment={how.experiment}", *RECIPE, *how.overrides, *start])
        assert (config.experiment, config.trainer.threads) == (how.experiment, 1)
        check_alike(Step(table, cell, 1))
    elif isinstance(how, Evaluate):
        composed("eval", ["run=RUN", *how.overrides])
    elif isinstance(how, Combine):
        composed("combine", ["forward=A", "backward=B", *how.overrides])
    elif isinstance(how, Attend):
        composed("attend", ["run=RUN", "output=regions.h5", *how.overrides])


def test_every_experiment_belongs_to_a_cell() -> None:
    used = {cell.how.experiment for _, cell in CELLS if isinstance(cell.how, Train)}
    assert used | NO_CELL == set(choices(entry.conf_folder(), "experiment"))


@pytest.mark.parametrize(("table", "cell"), CELLS, ids=NAMES)
def test_published_numbers_are_those_that_the_experiment_quotes(table: Table, cell: Cell) -> None:
    if not isinstance(cell.how, Train) or table in stand_ins.TABLES or cell.lesson:
        return
    header = (EXPERIMENTS / f"{cell.how.experiment}.yaml").read_text(encoding="utf-8").partition("defaults:")[0]
    (line,) = re.findall("# published: (.*)", header)
    quoted = {float(number) for number in re.findall(r"([\d.]+) %", line)}
    assert {published.value for published in cell.published} <= quoted


@pytest.mark.parametrize("name", BASELINES)
def test_published_numbers_of_the_other_rows(name: str) -> None:
    cells = {cell.name: cell for cell in TABLES[name].cells}
    for cell, value in BASELINES[name].items():
        assert cells[cell].published[0].value == value


@pytest.mark.parametrize("table", stand_ins.TABLES, ids=lambda table: table.name)
def test_published_numbers_of_stand_ins_are_those_of_the_tables_they_stand_for(table: Table) -> None:
    shaped = table.name.rpartition("-")[0]
    of_these = [other for name, other in TABLES.items() if name in (shaped, f"{shaped}-64", f"{shaped}-110")]
    there = {published.value for other in of_these for cell in other.cells for published in cell.published}
    assert there and {published.value for cell in table.cells for published in cell.published} <= there


def test_what_is_absent_says_why() -> None:
    for _, cell in CELLS:
        if isinstance(cell.how, Absent):
            assert cell.how.why


def test_nearest_names() -> None:
    with pytest.raises(Refused, match="ram/2c is not a table. Did you mean 'ram/2b'"):
        find_table("ram/2c")
    for typed, meant in {
        "2a": "'ram/2a'\\?",
        "RAM/2A": "'ram/2a'\\?",
        "soft_ram/3": "'soft_ram/3-64' or 'soft_ram/3-128' or",
        "rsam/3": "'rsam/figure-3",
    }.items():
        with pytest.raises(Refused, match=f"{typed} is not a table. Did you mean {meant}"):
            find_table(typed)
    with pytest.raises(Refused, match="6-glimpse is not a cell of ram/2a. Did you mean '6-glimpses'"):
        find_cells(find_table("ram/2a"), ["6-glimpse"])


def test_the_same_cell_of_another_paper() -> None:
    assert resolve(TABLES["soft_ram/1"], "ram-4") == resolve(TABLES["ram/2b"], "4-glimpses")
