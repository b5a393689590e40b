"""All tables by name, and finding a table or a cell."""

from __future__ import annotations

from collections.abc import Iterable

from attn_cli.errors import Refused, nearest
from attn_cli.papers import dram, ram, rsam, soft_ram, stand_ins
from attn_cli.papers.cells import Cell, Same, Table, full_name

PAPERS = ("ram", "dram", "soft_ram", "rsam")
TABLES = {
    table.name: table
    for paper in PAPERS
    for table in (*ram.TABLES, *dram.TABLES, *soft_ram.TABLES, *rsam.TABLES, *stand_ins.TABLES)
    if table.name.split("/")[0] == paper
}


def find_table(name: str) -> Table:
    """Raises Refused with the nearest names."""
    if name not in TABLES:
        meant = [table for table in TABLES if all(word in table for word in name.lower().split("/"))]
        said = f" Did you mean {' or '.join(map(repr, meant[:4]))}?" if meant else nearest(name, TABLES)
        raise Refused(f"{name} is not a table.{said} `attn reproduce` lists all of them.")
    return TABLES[name]


def find_cells(table: Table, names: Iterable[str]) -> list[Cell]:
    """Raises Refused with the nearest names."""
    cells = {cell.name: cell for cell in table.cells}
    for name in names:
        if name not in cells:
            raise Refused(f"{name} is not a cell of {table.name}.{nearest(name, cells)}")
    return [cells[name] for name in names]


def resolve(table: Table, name: str) -> tuple[Table, Cell]:
    """What a reference made within `table` means, through cells that are the same as another."""
    paper, number, cell_name = full_name(table, name).split("/")
    table = find_table(f"{paper}/{number}")
    (cell,) = find_cells(table, [cell_name])
    return resolve(table, cell.how.of) if isinstance(cell.how, Same) else (table, cell)
