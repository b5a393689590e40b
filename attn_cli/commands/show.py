"""`attn show`: where a run looked, as a figure of glimpse paths and one animation an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from attn_cli.config import schema
from attn_cli.devices import choose_device, prepare_cpu
from attn_cli.errors import Refused
from attn_cli.inference.monte_carlo import evaluation_noise
from attn_cli.learning.restore import restore
from attn_cli.models.rollout import rollout
from attn_cli.pictures.animation import glimpse_animation
from attn_cli.pictures.paths import glimpse_path_figure
from attn_cli.runs import latest, open_run


def run(config: schema.Show) -> list[Path]:
    """Draw the mean-location paths of the chosen images; returns the files."""
    prepare_cpu(config.threads)
    found = open_run(config.run) if config.run else latest(config.outputs)
    restored = restore(found, config.checkpoint, choose_device(config.device))
    images, labels = restored.data.fixed(config.split)
    wanted = list(range(min(config.images, len(labels)))) if isinstance(config.images, int) else list(config.images)
    outside = [i for i in wanted if not 0 <= i < len(labels)]
    if outside:
        raise Refused(
            f"images={outside} lies outside the {config.split} split, which has images 0 to {len(labels) - 1}."
        )
    files = draw(
        restored,
        images,
        labels,
        wanted,
        config.seed,
        Path(config.output or found.path / "pictures"),
        config.gif,
        config.split,
    )
    for file in files:
        print(file)
    return files


@torch.no_grad()
def draw(
    restored: Any, images: Any, labels: Any, wanted: list[int], seed: int, folder: Path, gif: bool, split: str
) -> list[Path]:
    """paths-<split>.png and, if asked, glimpses-<split>-<i>.gif for each image; the noise is that of `attn eval`."""
    model, names = restored.model, restored.data.info.class_names
    index = torch.tensor(wanted, device=images.device)
    noise = evaluation_noise(seed, 0, 0, len(labels), model.steps)[torch.tensor(wanted)]
    chosen, truth = images[index], model.order(labels[index]).cpu()
    _, trace = rollout(model, chosen, noise[None].to(images.device), greedy=True, record=True)
    folder.mkdir(parents=True, exist_ok=True)
    files = [glimpse_path_figure(chosen, trace, truth, names, folder / f"paths-{split}.png")]
    if gif:
        for i, number in enumerate(wanted):
            path = folder / f"glimpses-{split}-{number}.gif"
            files.append(glimpse_animation(chosen[i], trace, i, truth[i], names, path))
    return files
