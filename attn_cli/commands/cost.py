"""`attn cost`: parameters, multiply-adds and floating-point operations of a model for one image, by closed form.

1. What counts as a multiply-add, and what a backward pass costs, stands in models/parts.py. A multiply-add
   is two floating-point operations; what Table 5 of Ba et al. 2015 calls floating-point operations are multiply-adds.
2. A sequence costs most at its longest; reading ends with "no more", so that the expected cost is that of the expected
   length and one more answer. A ConvNet gives all answers at once and always costs the same.
3. With M paths what is worked out once an image, such as the context, counts once. A forward and a backward reader
   together cost twice as much and have twice the parameters, shared weights among them.
4. A model that tells no closed form (`timm`, installed packages) is run once under torch's counter.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from attn_cli.commands import cost_curve
from attn_cli.config import schema
from attn_cli.data.shapes import shape_of, usual_length
from attn_cli.data.splits import DataInfo
from attn_cli.devices import choose_device, prepare_cpu
from attn_cli.errors import Refused
from attn_cli.files import check_place, write_atomically
from attn_cli.models.counting import parameters, parts_of, weightless
from attn_cli.models.parts import multiply_adds
from attn_cli.papers import dram
from attn_cli.pictures.cost_tables import cost_comparison, cost_table, curve_table, parts_table
from attn_cli.pictures.curves import cost_curves
from attn_cli.pictures.tables import show
from attn_cli.runs import open_run

COLUMNS = ("10 layer CNN", "DRAM", "DRAM MC avg.", "F-B DRAM MC avg.")
PUBLISHED = {"multiply-adds, G": dram.OPERATIONS, "parameters, M": dram.PARAMETERS}
AT_MOST = ("multiply-adds, G", "DRAM")  # the paper gives a bound
TEN_LAYERS = schema.Config(model=schema.ConvNet())
READER = schema.Config(model=schema.Dram(), glimpses=schema.Glimpses(3, 12), scales=schema.Scales(1))  # section 8.3
# A word of the command line that chooses what is counted
SETTING = re.compile(r"[+~]*(experiment|model|data|scales|glimpses)\b")


def run(config: schema.Cost) -> dict[str, Any]:
    """Count, print, write; returns what is written."""
    _check(config)
    if config.table is not None:
        result = table_5(config.samples)
        show(cost_comparison(result))
    else:
        asked = open_run(config.run).config() if config.run else config
        settings = schema.Config(model=asked.model, data=asked.data, scales=asked.scales, glimpses=asked.glimpses)
        info = sized(shape_of(settings.data), config.size)
        result = cost(settings, info, config.samples, _expected(config, settings, info))
        show(parts_table(result))
        show(cost_table(result))
        if config.curve is not None:
            prepare_cpu(config.threads)
            device = choose_device(config.device)
            result["curve"] = cost_curve.measure(settings, info, device)
            show(curve_table(result["curve"]))
            print(f"Written to {cost_curves(result['curve'], config.curve)}")
    if config.output is not None:
        write_atomically(Path(config.output), json.dumps(result, indent=2) + "\n")
    return result


def _check(config: schema.Cost) -> None:
    for key in ("output", "curve"):
        check_place(getattr(config, key), key)
    if config.curve is not None and Path(config.curve).suffix.lower() != ".png":
        raise Refused(f"curve={config.curve} must name a .png file.")
    own = [key for key in ("run", "size", "length", "curve") if getattr(config, key) is not None]
    chosen = list(dict.fromkeys(found[1] for word in sys.argv[1:] if (found := SETTING.match(word))))
    if config.table is not None and own + chosen:
        raise Refused(
            f"table={config.table} has networks and sizes of its own: leave out {' and '.join(own + chosen)}."
        )
    if config.run is not None and chosen:
        raise Refused(f"run={config.run} has a network and data of its own: leave out {' and '.join(chosen)}.")
    if config.size is not None and len(config.size) not in (1, 2):
        raise Refused(f"size must be one side, or height and width such as [54, 110], not {list(config.size)}.")


def _expected(config: schema.Cost, settings: schema.Config, info: DataInfo) -> float | None:
    """How many labels a sequence is expected to have; None where nobody knows or there is no sequence."""
    if config.length is None:
        return usual_length(settings.data)
    if not info.length:
        raise Refused(f"length={config.length:g} is for sequences; data={info.name} has one label an image.")
    if config.length > info.length:
        raise Refused(f"length={config.length:g} is more than the {info.length} labels of the longest sequence.")
    return config.length


def sized(info: DataInfo, size: tuple[int, ...] | None) -> DataInfo:
    """The same data with images of another size."""
    return info if size is None else replace(info, height=size[0], width=size[-1])


def cost(settings: schema.Config, info: DataInfo, samples: int, expected: float | None) -> dict[str, Any]:
    """What the configured model costs on one such image: at the longest sequence and, where it is known, at the
    `expected` number of labels; along one path, along `samples` of them, and with two readers.
    """
    model = weightless(settings, info)
    size = parameters(model)
    answers: dict[str, float] = {"longest sequence" if model.sequence else "one answer": model.targets}
    if model.sequence and expected is not None:
        answers[f"expected sequence, {expected:.2f} labels"] = expected + 1
    paths = [1, samples] if model.stochastic and samples > 1 else [1]
    readers = [1, 2] if model.sequence and hasattr(settings.model, "reader") else [1]
    totals = []
    for what, targets in answers.items():
        parts = parts_of(settings, info, targets)
        for R in readers:
            for M in paths:
                forward = R * multiply_adds(parts, samples=M)
                totals.append(
                    {
                        "what": what,
                        "answers": targets,
                        "readers": R,
                        "samples": M,
                        "parameters": R * size,
                        "multiply_adds": forward,
                        "flops": 2 * forward,
                        "training_multiply_adds": R * multiply_adds(parts, True, M),
                    }
                )
    return {
        "model": settings.model.name,
        "data": info.name,
        "height": info.height,
        "width": info.width,
        "parts": [
            {"name": p.name, "multiply_adds": p.adds, "calls": p.calls, "shared": p.shared}
            for p in parts_of(settings, info)
            if not p.training_only
        ],
        "totals": totals,
    }


def table_5(samples: int) -> dict[str, Any]:
    """Table 5 of Ba et al. 2015 beside the same numbers of this project, with M = `samples` where the paper averages.

    The two columns that average cost 1.8 and 5.6 passes at the two sizes of image, which no single M gives.
    """
    cells = []
    for quantity, rows in PUBLISHED.items():
        for side, published in rows.items():
            info = sized(shape_of(schema.Svhn()), (side,))
            convnet, reader = (weightless(settings, info) for settings in (TEN_LAYERS, READER))
            if quantity == "parameters, M":
                size, one = (parameters(model) / 1e6 for model in (convnet, reader))
                ours = (size, one, one, 2 * one)
            else:
                size, one = convnet.multiply_adds() / 1e9, reader.multiply_adds() / 1e9
                average = multiply_adds(reader.parts(), samples=samples) / 1e9
                ours = (size, one, average, 2 * average)
            for column, theirs, mine in zip(COLUMNS, published, ours, strict=True):
                averaged = "avg" in column and quantity != "parameters, M"
                cells.append(
                    {
                        "quantity": quantity,
                        "size": side,
                        "column": column,
                        "published": theirs,
                        "at_most": (quantity, column) == AT_MOST,
                        "ours": mine,
                        "samples": samples if averaged else None,
                        "passes": theirs / one / (2 if column.startswith("F-B") else 1) if averaged else None,
                        "reproducible": not averaged,
                    }
                )
    return {"table": "dram/5", "paper": "arXiv 1412.7755", "samples": samples, "cells": cells}
