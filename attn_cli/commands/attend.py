"""`attn attend`: a data set of what a run looked at, cut out of every image (Semeniuta & Barth 2016, section IV.C).

The model sees the part of each image that `attn eval` shows it, the crop from the centre; the region of its last step
along the mean path is cut out of the whole image, so it may reach beyond that part, and enlarged to the size of the
image. The file has the form of cub200's prepared file, images in the same order: what validates stays the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attn_cli.config import command_sections
from attn_cli.config.arguments import pasted
from attn_cli.data import writing
from attn_cli.data.photos import Birds, edges
from attn_cli.data.progress import counted
from attn_cli.devices import choose_device, prepare_cpu, within_memory
from attn_cli.errors import Refused
from attn_cli.files import expanded, kind_of
from attn_cli.inference.monte_carlo import evaluation_noise
from attn_cli.inference.regions import boxes_within, cut, last_regions, overlap, widened
from attn_cli.learning.restore import Restored, open_own, restore
from attn_cli.models.rollout import rollout
from attn_cli.runs import Run, latest, open_run

Choose = Callable[[str, slice, Tensor], Tensor]  # split, which of its images, the images → regions (B, 4)


@within_memory
def run(config: command_sections.Attend) -> dict[str, Any]:
    """Writes the file; returns its path and, by split, the mean intersection over union with the true boxes."""
    prepare_cpu(config.threads)
    found = open_run(config.run) if config.run else latest(config.outputs)
    output = expanded(config.output, "output")
    if output.suffix != ".h5" or kind_of(output.parent) != "folder" or kind_of(output):
        raise Refused(f"output={output} must be a new .h5 file in a folder that exists: name another.")
    device = choose_device(config.device)
    data, choose = _chosen(found, config, device)
    source = data.source
    arrays = source.arrays()
    overlaps: dict[str, list[Tensor]] = {"train": [], "test": []}

    def fill(put: writing.Put) -> None:
        for split in overlaps:
            pool, true = data.images[split], edges(source.boxes[split])
            put(f"{split}_labels", 0, source.labels[split])
            starts = range(0, len(pool), config.batch_size)
            for low in counted(starts, len(starts), f"batches of {split}", print):
                part = slice(low, low + config.batch_size)
                images = pool[part].to(device)
                regions = widened(choose(split, part, images), *images.shape[-2:])
                put(f"{split}_images", low, cut(images, regions, images.shape[-1]).cpu().numpy())
                boxes = boxes_within(true[part], regions.cpu(), images.shape[-1])
                put(f"{split}_boxes", low, boxes.to(torch.uint8).numpy())
                overlaps[split].append(overlap(regions.cpu(), true[part]))

    what = f"regions of {found.name}" if config.regions == "attended" else "true boxes"
    shapes = {name: array.shape for name, array in arrays.items()}
    origin = f"{what}, cut out of: {source.origin}"
    writing.write_filled(output, source.name, origin, source.class_names, shapes, fill, setting="output")
    means = {split: torch.cat(values).mean().item() for split, values in overlaps.items()}
    for split, mean in means.items():
        print(f"{split}: {len(source.labels[split]):,} images, intersection over union with the true boxes {mean:.3f}")
    print(f"Written to {output}: train on it with data=cub200 {pasted('data.path', output)}")
    return {"output": str(output), "iou": means}


def _chosen(found: Run, config: command_sections.Attend, device: torch.device) -> tuple[Birds, Choose]:
    """The run's data, and which region of its whole images is wanted."""
    if config.regions == "boxes":
        data = open_own(found, found.config().data)
        if isinstance(data, Birds):
            true = {split: edges(boxes) for split, boxes in data.source.boxes.items()}
            return data, lambda split, part, images: true[split][part].to(images.device)
    else:
        restored = restore(found, config.checkpoint, device)
        if not restored.model.moves:
            raise Refused(f"{found.path} looks at no region: name a run of a model that moves, such as soft_ram.")
        if isinstance(restored.data, Birds):
            return restored.data, _attended(restored, restored.data)
    raise Refused(
        f"{found.path} has data={found.config().data.name}: regions are cut out of the images of data=cub200."
    )


def _attended(restored: Restored, data: Birds) -> Choose:
    model, (top, left) = restored.model, data.centre()
    noises = {
        split: evaluation_noise(0, 0, 0, len(images), model.steps, model.noises)
        for split, images in data.images.items()
    }

    @torch.no_grad()
    def choose(split: str, part: slice, images: Tensor) -> Tensor:
        seen = images[..., top : top + data.height, left : left + data.width].contiguous()
        _, trace = rollout(model, seen, noises[split][None, part].to(images.device), greedy=True, record=True)
        regions = last_regions(trace)
        return regions + regions.new_tensor([left, top, left, top])

    return choose
