"""Tables of ours beside the papers', and their sections of RESULTS.md."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from attn_cli.errors import Refused
from attn_cli.files import write_atomically
from attn_cli.papers import index, records, report
from attn_cli.papers.cells import Absent, Cell, Combine, Evaluate, Published, Same, Table, Train
from attn_cli.papers.records import Record, add, load

TOY = Table(
    "toy/1",
    "Toy",
    (
        Cell("first", "first lesson", Train("demo", cpu=60), lesson=True),
        Cell("one", "One", Train("demo", start="first", cpu=600, gpu=30), (Published("v1", 5), Published("v2", 4.5))),
        Cell("many", "Many", Evaluate("one", ("mc_samples=10",))),
        Cell("both", "Both", Combine("one", "first", ("rule=flip",)), (Published("v2", 3, "97 % right"),)),
        Cell("none", "None", Absent("no experiment yet"), (Published("v1", 9),)),
    ),
    versions=("v1", "v2"),
)
OTHER = Table("toy/2", "Other", (Cell("same", "Same", Same("toy/1/one")),))
EMPTY = "# Mine\n\n<!-- attn reproduce toy/1 begins -->\n<!-- attn reproduce toy/1 ends -->\n\nText.\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for table in (TOY, OTHER):
        monkeypatch.setitem(index.TABLES, table.name, table)
    return tmp_path


def cells(table: Table) -> dict[str, dict[str, str]]:
    header, rows = report.rows(table, load(table))
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_results_md_holds_exactly_what_was_measured(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    found = report.sections(report.RESULTS.read_text(encoding="utf-8"))
    assert set(found) == set(index.TABLES)
    for name, section in found.items():
        assert section.body == report.markdown(index.TABLES[name], load(index.TABLES[name])), (
            f"attn reproduce --write: {name}"
        )
        assert section.digest == report.digest(section.body)


def test_the_summary_of_results_md_copies_its_tables(repository: Path) -> None:
    text = (repository / "RESULTS.md").read_text(encoding="utf-8")
    summary = text.split("## Published and ours")[1].split("\n## ")[0]
    lines = [[part.strip() for part in line.split("|")[1:-1]] for line in summary.splitlines() if "`" in line]
    assert len(lines) > 20
    for task, cell, _, ours, averaged, _ in lines:
        name, _, row = cell.partition(", ")
        rows = cells(index.TABLES[name.strip("`")])
        found = [
            re.match(r"\*\*(.*?)\*\*|", rows.get(key, {}).get("ours", ""))[1] for key in (row, f"{row[:-1]}-average`")
        ]
        interval = rows[row]["95 % interval"]
        assert ours.split(" (on a lossy copy")[0] == (f"{found[0]} ({interval})" if interval else found[0] or "–"), task
        assert averaged == (found[1] or "–"), task


def test_a_measured_cell(here: Path) -> None:
    for seed, value in ((1, 4.0), (2, 5.0), (3, 6.0)):
        add(TOY, "one", Record((seed,), value, None, 7.0, None, None, 10_000, 40, 1200.0, "a CPU", f"abc{seed // 3}"))
    row = cells(TOY)["`one`"]
    assert row["what, and how"] == "One: `experiment=demo`, init_from `first`"
    assert (row["v1"], row["v2"], row["ours"]) == ("5", "4.5", "**5.00 ± 1.00**")
    assert row["95 % interval"] == "4.59 – 5.44"  # Wilson, 500 of 10,000
    assert (row["validation"], row["seeds"], row["epochs"]) == ("7.00", "1, 2, 3", "40")
    assert (row["time a run"], row["hardware"], row["commit"]) == ("20 min", "a CPU", "abc0, abc1")
    assert cells(OTHER)["`same`"]["ours"] == row["ours"]


def test_a_gain_has_a_column_once_there_is_one(here: Path) -> None:
    assert "gain" not in cells(TOY)["`many`"]
    add(TOY, "many", Record((1,), 4.0, gain=(-0.5, -1.0, 0.25)))
    assert cells(TOY)["`many`"]["gain"] == "−0.50 (−1.00 – 0.25)"
    assert cells(TOY)["`one`"]["gain"] == ""


def test_what_is_not_measured_tells_command_and_expected_time(here: Path) -> None:
    found = cells(TOY)
    assert found["`one`"]["ours"] == "not yet measured: `attn reproduce toy/1 --only one`"
    assert found["`one`"]["time a run"] == "expected 10 min on a CPU and 30 s on a GPU"
    assert found["`first`"]["ours"] == "a lesson for others"
    assert found["`first`"]["time a run"] == "expected 60 s on a CPU, not yet measured on a GPU"
    assert found["`none`"]["ours"] == found["`none`"]["v2"] == "–"
    assert found["`both`"]["v2"] == "3 (97 % right)"
    assert found["`both`"]["what, and how"] == "Both: `attn combine rule=flip` of `one` and `first`"
    assert cells(OTHER)["`same`"]["ours"] == "not yet measured: `attn reproduce toy/1 --only one`"
    assert report.count(TOY, {}) == (0, 3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(42, "42 s"), (89, "89 s"), (90, "2 min"), (2340, "39 min"), (18000, "5 h"), (1440000, "17 days")],
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert report.about(seconds) == text


def test_sections_follow_what_is_measured_and_nothing_else_changes(here: Path) -> None:
    report.RESULTS.write_text(EMPTY)
    assert report.update(["toy/1", "toy/2"]) == ["toy/1"]  # the other has no markers
    first = report.RESULTS.read_text()
    assert first.startswith("# Mine\n\n<!-- attn reproduce toy/1 begins, sha256=") and first.endswith("-->\n\nText.\n")
    assert "| `one` |" in first
    report.update(["toy/1"])
    assert report.RESULTS.read_text() == first
    add(TOY, "one", Record((1,), 4.0))
    report.check(["toy/1"])  # stale, but by nobody's hand
    report.update(["toy/1"])
    assert "**4.00**" in report.RESULTS.read_text()


def test_of_two_commands_that_write_at_once_none_undoes_what_the_other_wrote(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.RESULTS.write_text(EMPTY)
    threads: list[threading.Thread] = []

    def slowly(path: Path, text: str) -> None:
        if not threads:  # the other command has a new number before this one has written
            add(TOY, "one", Record((1,), 4.0))
            threads.append(threading.Thread(target=report.update, args=(["toy/1"],)))
            threads[0].start()
            threads[0].join(0.5)
        write_atomically(path, text)

    monkeypatch.setattr(report, "write_atomically", slowly)
    report.update(["toy/1"])
    threads[0].join()
    assert "**4.00**" in report.RESULTS.read_text()


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ("not yet measured: `attn reproduce toy/1 --only one`", "**3.00**", "+| `one` | One: `experiment=demo`, "),
        ("\n| `none` |", "\n| `more` |", "+| `more` |"),
        ("**Toy.**", "**Toys.**", "-**Toy.** Test error in %.\n+**Toys.** Test error in %."),
    ],
)
def test_what_was_edited_by_hand_is_refused_with_the_difference(
    here: Path, before: str, after: str, difference: str
) -> None:
    report.RESULTS.write_text(EMPTY)
    report.update(["toy/1"])
    edited = report.RESULTS.read_text().replace(before, after, 1)
    report.RESULTS.write_text(edited)
    for ask in (report.check, report.update):
        with pytest.raises(Refused, match="RESULTS.md was edited by hand between the markers of toy/1") as refused:
            ask(["toy/1"])
        assert difference in str(refused.value)
    assert report.RESULTS.read_text() == edited


def test_a_file_that_an_editor_has_saved_as_latin_1_is_refused(here: Path) -> None:
    text = EMPTY.encode() + "4 ± 1".encode("latin-1")
    report.RESULTS.write_bytes(text)
    for ask in (report.check, report.update):
        with pytest.raises(Refused, match=r"RESULTS.md is not UTF-8 \(byte \d+\): save it as UTF-8"):
            ask(["toy/1"])
    assert report.RESULTS.read_bytes() == text


def test_an_emptied_section_is_written_anew(here: Path) -> None:
    report.RESULTS.write_text(EMPTY)
    report.update(["toy/1"])
    text = report.RESULTS.read_text()
    section = report.sections(text)["toy/1"]
    report.RESULTS.write_text(text.replace(section.body, ""))
    report.update(["toy/1"])
    assert report.RESULTS.read_text() == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!-- attn reproduce toy/1 begins -->\n", "line 1: toy/1 begins and never ends"),
        ("\n<!-- attn reproduce toy/1 ends -->\n", "line 2: toy/1 ends and has not begun"),
        (EMPTY + EMPTY, "line 9: toy/1 begins inside another table or twice"),
        (
            "<!-- attn reproduce toy/1 begins -->\n<!-- attn reproduce toy/2 ends -->\n",
            "line 2: toy/2 ends and has not",
        ),
        ("<!-- attn reproduce toy/9 begins -->\n<!-- attn reproduce toy/9 ends -->\n", "toy/9 is not a table"),
    ],
)
def test_markers_that_do_not_pair_are_refused(here: Path, text: str, says: str) -> None:
    report.RESULTS.write_text(text)
    with pytest.raises(Refused, match=says):
        report.update(["toy/1"])
    assert report.RESULTS.read_text() == text


def test_without_results_md_there_is_nothing_to_write(here: Path) -> None:
    report.check(["toy/1"])
    assert report.update(["toy/1"]) == []
    assert not report.RESULTS.exists() and records.PACKAGED.is_dir()
