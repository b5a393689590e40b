"""`attn show`: where a run looked, as a figure of glimpse paths and one animation an image, video or game."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from attn_cli.commands.combine import check_reader
from attn_cli.commands.file_names import changes, joined
from attn_cli.config import command_sections
from attn_cli.data.splits import Pictures
from attn_cli.devices import choose_device, prepare_cpu
from attn_cli.errors import Refused
from attn_cli.files import make_folder
from attn_cli.inference.monte_carlo import evaluation_noise
from attn_cli.learning.restore import Restored, check_same_images, restore
from attn_cli.models.rollout import moving, play, rollout
from attn_cli.models.trace import Trace
from attn_cli.pictures.animation import glimpse_animation, readers_animation
from attn_cli.pictures.games import game_animation, games_figure
from attn_cli.pictures.paths import glimpse_path_figure, readers_figure
from attn_cli.pictures.videos import strips_figure
from attn_cli.runs import latest, open_run


def run(config: command_sections.Show) -> list[Path]:
    """Draw the mean-location paths of the chosen images; returns the files."""
    prepare_cpu(config.threads)
    found = open_run(config.run) if config.run else latest(config.outputs)
    restored = restore(found, config.checkpoint, choose_device(config.device), config.data)
    images, labels = restored.data.fixed(config.split)
    wanted = list(range(min(config.images, len(labels)))) if isinstance(config.images, int) else list(config.images)
    outside = [i for i in wanted if not 0 <= i < len(labels)]
    if outside:
        raise Refused(
            f"images={outside} lies outside the {config.split} split, which has images 0 to {len(labels) - 1}."
        )
    readers = {"": restored}
    if config.backward is not None:
        backward = restore(open_run(config.backward), config.checkpoint, images.device, config.data)
        check_reader(restored, "forward", "run")
        check_reader(backward, "backward", "backward")
        check_same_images(restored, backward, config.split, "draw readers of")
        readers = {"forward": restored, "backward": backward}
    folder = make_folder(Path(config.output or found.path / "pictures"), "output")
    name = joined(config.data.name if config.data else "", config.split, *changes(config, "checkpoint"))
    if restored.model.game is not None:
        files = draw_games(restored, labels, wanted, config.seed, folder, config.gif, name)
    else:
        files = draw(readers, images, labels, wanted, config.seed, folder, config.gif, name)
    for file in files:
        print(file)
    return files


@torch.no_grad()
def draw_games(
    restored: Restored, starts: Tensor, wanted: list[int], seed: int, folder: Path, gif: bool, name: str
) -> list[Path]:
    """games-NAME.png and, if asked, game-NAME-<i>.gif for each game, as `attn eval` plays them."""
    model, info = restored.model, restored.data.info
    noise = evaluation_noise(seed, 0, 0, len(starts), model.steps, model.noises)[torch.tensor(wanted)]
    index = torch.tensor(wanted, device=starts.device)
    trace = play(model, starts[index], noise[None].to(starts.device), greedy=True, record=True)
    files = [games_figure(trace, folder / f"games-{name}.png")]
    for i, number in enumerate(wanted if gif else ()):
        files.append(game_animation(trace, i, info.class_names, folder / f"game-{name}-{number}.gif"))
    return files


@torch.no_grad()
def draw(
    readers: Mapping[str, Restored],
    images: Pictures,
    labels: Tensor,
    wanted: list[int],
    seed: int,
    folder: Path,
    gif: bool,
    name: str,
) -> list[Path]:
    """paths-NAME.png, or of videos strips-NAME.png, and, if asked, glimpses-NAME-<i>.gif for each image; of
    several readers, by heading, side by side, and the files' names start with those of the readers. The noise is that
    of `attn eval`.
    """
    index, names = torch.tensor(wanted, device=images.device), next(iter(readers.values())).data.info.class_names
    chosen = images[index]
    seen: dict[str, tuple[Trace, Tensor]] = {}
    for reader, restored in readers.items():
        model = restored.model
        noise = evaluation_noise(seed, 0, 0, len(labels), model.steps, model.noises)[torch.tensor(wanted)]
        _, trace = rollout(model, chosen, noise[None].to(images.device), greedy=True, record=True)
        seen[reader] = (trace, model.order(labels[index]).cpu())
    prefix = "".join(f"{reader}-" for reader in readers if reader)
    if len(seen) == 1:
        trace, truth = seen[""]
        if moving(chosen):
            files = [strips_figure(chosen, trace, truth, names, folder / f"strips-{name}.png")]
        else:
            files = [glimpse_path_figure(chosen, trace, truth, names, folder / f"paths-{name}.png")]
    else:
        files = [readers_figure(chosen, seen, names, folder / f"{prefix}paths-{name}.png")]
    for i, number in enumerate(wanted if gif else ()):
        path = folder / f"{prefix}glimpses-{name}-{number}.gif"
        if len(seen) == 1:
            files.append(glimpse_animation(chosen[i], trace, i, truth[i], names, path))
        else:
            answers = {reader: (trace, truth[i]) for reader, (trace, truth) in seen.items()}
            files.append(readers_animation(chosen[i], answers, i, names, path))
    return files
