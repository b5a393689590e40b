"""The cost of a model against the size of the image, beside that of the 10-layer ConvNet: counted, and measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from attn_cli.config import schema
from attn_cli.data.splits import DataInfo
from attn_cli.models.build import build_model
from attn_cli.models.counting import blank, parameters, parts_of, weightless
from attn_cli.models.model import GlimpseModel
from attn_cli.models.parts import multiply_adds
from attn_cli.models.rollout import draw_noise, rollout

COMPARED = schema.Config(model=schema.ConvNet())  # the 10-layer ConvNet
SIDES = (28, 54, 80, 110, 160, 256, 400, 640, 1000)  # pixels
LARGEST_WHOLE = 256  # pixels; larger images are not timed with a model that sees them whole
BYTES = 5  # of memory for a parameter, with some to spare
SECONDS = 0.3  # of measuring each time, or three passes


def measure(settings: schema.Config, info: DataInfo, device: torch.device) -> list[dict[str, Any]]:
    """For the configured model and the 10-layer ConvNet at each size: `model`, `side`, `parameters`, `multiply_adds`
    of one path through the longest sequence, and `seconds` for one image at a time (None: not measured).

    Of a video the ConvNet sees every frame. Raises Refused if a model cannot see images of one of the sizes.
    """
    networks = {network.model.name: network for network in (COMPARED, settings)}
    rows = []
    for name, network in networks.items():
        for side in SIDES:
            at, times = replace(info, height=side, width=side), 1
            if network is COMPARED and info.frames:
                at, times = replace(at, frames=0), info.frames
            model = weightless(network, at)
            size = parameters(model)
            timed = (model.moves or side <= LARGEST_WHOLE) and BYTES * size < free_memory(device)
            rows.append(
                {
                    "model": name,
                    "side": side,
                    "parameters": size,
                    "multiply_adds": times * multiply_adds(parts_of(network, at)),
                    "seconds": times * seconds(build_model(network, at).to(device).eval(), at, device)
                    if timed
                    else None,
                }
            )
    return rows


def seconds(model: GlimpseModel, info: DataInfo, device: torch.device) -> float:
    """Time of one path through one image: the fastest of at least three (what else the machine does only adds to it),
    after one that is not counted.
    """
    image = blank(info).to(device)
    noise = draw_noise(0, 0, (1, 1, model.steps), device, model.noises)

    def look() -> None:
        rollout(model, image, noise, greedy=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    with torch.no_grad():
        took(look)
        times = [took(look) for _ in range(3)]
        while sum(times) < SECONDS:
            times.append(took(look))
    return min(times)


def took(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def free_memory(device: torch.device) -> float:
    """Bytes; without bound where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return float("inf")
