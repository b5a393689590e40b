"""`attn reproduce`: the papers' tables beside ours; runs what a table is missing and writes it into RESULTS.md."""

from __future__ import annotations

import re
from argparse import RawDescriptionHelpFormatter

from attn_cli.config.arguments import Parser
from attn_cli.errors import Refused
from attn_cli.papers import records, report
from attn_cli.papers.cells import Absent, Table
from attn_cli.papers.index import TABLES, find_cells, find_table
from attn_cli.pictures import tables

EPILOG = """examples:
  attn reproduce                                   every table, cell by cell: published, ours, or how to measure it
  attn reproduce ram/2a                            run what is missing in Table 2a; after an interruption, the rest
  attn reproduce ram/2a --seeds 3 --budget 2h      seeds 1 to 3, as many runs as fit two hours
  attn reproduce dram/1 --only dram                one cell, and the lessons that it starts from
  attn reproduce ram/2a --list                     the table, without running anything
  attn reproduce --write                           write all tables into RESULTS.md, without running anything

Runs lie in outputs/reproduce. Numbers go into attn_cli/papers/measured in a checkout, into outputs/reproduce/measured
elsewhere, and into RESULTS.md of the current folder, if it has markers for the table. A budget is kept by the expected
times on a CPU; a run whose time is not known is not started within one.
"""
MOST_SEEDS = 100
UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def main(argv: list[str]) -> int:
    """`argv` is what follows `attn reproduce`. Returns the exit code; raises Refused."""
    given = _parser().parse_args(argv)
    budget = None if given.budget is None else seconds(given.budget)
    selected = given.only or given.seeds is not None or budget is not None
    seeds = 1 if given.seeds is None else given.seeds
    if not 1 <= seeds <= MOST_SEEDS:
        raise Refused(f"--seeds must be at least 1 and at most {MOST_SEEDS}, not {seeds}: seeds 1 to N are run.")
    if selected and (given.list or given.write):
        raise Refused("--only, --seeds and --budget say what is run; --list and --write run nothing: leave them out.")
    if given.table is None:
        if selected:
            raise Refused("--only, --seeds and --budget are for one table: name it, such as `attn reproduce ram/2a`.")
        names = list(TABLES)
    else:
        names = [find_table(given.table).name]
    if given.write:
        written = report.update(names)
        print(f"{report.RESULTS}: {', '.join(written) if written else 'no markers of these tables'}")
        return 0
    if given.table is None or given.list:
        for name in names:
            _show(TABLES[name])
        if given.table is None:
            done = [report.count(table, records.load(table)) for table in TABLES.values()]
            print(f"{sum(d for d, _ in done)} of {sum(n for _, n in done)} cells are measured.")
        return 0
    return _run(TABLES[names[0]], given.only, seeds, budget)


def seconds(text: str) -> float:
    """2h, 90min, 1h30m as seconds; raises Refused."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)", text)
    found = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.replace(" ", "") or not found:
        raise Refused(f"--budget {text} is not a time: write it like 2h, 90min or 1h30m.")
    return found


def _parser() -> Parser:
    parser = Parser(
        "attn reproduce",
        description="The papers' tables: published numbers beside ours, and running what is missing.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("table", nargs="?", metavar="TABLE", help="such as ram/2a; without it all are listed")
    parser.add_argument("--only", action="append", default=[], metavar="CELL", help="run this cell; may be repeated")
    parser.add_argument("--seeds", type=int, metavar="N", help="run seeds 1 to N (default: 1)")
    parser.add_argument("--budget", metavar="TIME", help="start only runs that fit, such as 2h or 90min")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="print the table, run nothing")
    instead.add_argument("--write", action="store_true", help="write RESULTS.md, run nothing")
    return parser


def _run(table: Table, only: list[str], seeds: int, budget: float | None) -> int:
    from attn_cli.commands import reproducing  # Hydra takes its time to import

    cells = find_cells(table, only) if only else [cell for cell in table.cells if not cell.lesson]
    for cell in cells:
        if only and isinstance(cell.how, Absent):
            raise Refused(f"{table.name}/{cell.name} cannot be run: {cell.how.why}.")
    report.check(TABLES)
    steps = reproducing.plan(table, cells, seeds)
    known = [reproducing.expected(step) for step in steps]
    if steps:
        total = report.about(sum(time for time in known if time is not None))
        more = f", and {known.count(None)} of unknown time" if None in known else ""
        are = "run is" if len(steps) == 1 else "runs are"
        print(f"{len(steps)} {are} missing: about {total} on a CPU{more}.", flush=True)
    else:
        print("Nothing is missing here that could be run.")
    code = reproducing.run_all(steps, budget, lambda: report.update(TABLES))
    _show(table)
    written = table.name in report.update(TABLES)
    print(f"Written into {report.RESULTS}." if written else f"No {report.RESULTS} here has markers of {table.name}.")
    return code


def _show(table: Table) -> None:
    measured = records.load(table)
    tables.show(tables.paper_table(report.title(table, measured), *report.rows(table, measured)))
