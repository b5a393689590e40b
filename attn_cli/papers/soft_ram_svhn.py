"""Semeniuta, Barth 2016, Table III: whole house numbers of SVHN; choices are numbered in soft_ram.py."""

from __future__ import annotations

from attn_cli.papers.cells import (
    AVERAGED,
    BOTH,
    BOTH_AVERAGED,
    HOUR,
    Absent,
    Cell,
    Combine,
    Evaluate,
    Same,
    Table,
    Train,
)
from attn_cli.papers.soft_ram_recipes import FIVE_LAYERS, SSCI, cell


def _readers(size: int, forward: float, averaged: float, both: float, both_averaged: float) -> tuple[Cell, ...]:
    of, to = f"forward-{size}", f"backward-{size}"
    return (
        cell(of, "forward, single pass", Train(f"soft_ram/table3_forward_{size}", cpu=12 * HOUR), forward),
        cell(f"{of}-average", "forward, average", Evaluate(of, AVERAGED), averaged),
        Cell(to, "backward, single pass", Train(f"soft_ram/table3_backward_{size}", cpu=12 * HOUR)),
        cell(f"both-{size}", "both, single pass", Combine(of, to, BOTH), both),
        cell(f"both-{size}-average", "both, average", Combine(of, to, BOTH_AVERAGED), both_averaged),
    )


def _table3(size: int, others: tuple[Cell, ...], stn: float, readers: tuple[Cell, ...], five_layers: float) -> Table:
    def five(reader: str) -> Train:
        return Train(f"soft_ram/table3_{reader}_{size}", (FIVE_LAYERS,), cpu=14 * HOUR)

    return Table(
        f"soft_ram/3-{size}",
        f"Table III: whole house numbers, SVHN, {size}×{size}",
        (
            *others,
            cell(
                "stn",
                "Jaderberg et al., spatial transformers",
                Train(f"soft_ram/table3_stn_{size}", cpu=size * HOUR),
                stn,
            ),
            *readers,
            Cell("five-layers-forward", "5 layers, forward, single pass", five("forward")),
            Cell("five-layers-backward", "5 layers, backward, single pass", five("backward")),
            cell(
                "five-layers",
                "5 layers, both, average",
                Combine("five-layers-forward", "five-layers-backward", BOTH_AVERAGED),
                five_layers,
            ),
        ),
        versions=(SSCI,),
    )


TABLE3 = (
    _table3(
        64,
        (
            cell("goodfellow", "Goodfellow et al.", Absent("cited there"), 3.96),
            cell("dram", "Ba et al.", Same("dram/3/both-average"), 3.9),
        ),
        3.6,
        _readers(64, 4.5, 4.3, 3.9, 3.65),
        3.4,
    ),
    _table3(
        128,
        (cell("dram", "Ba et al.", Same("dram/4/both"), 4.46),),
        3.9,
        _readers(128, 5.5, 5.2, 4.45, 4.35),
        4.34,
    ),
)
