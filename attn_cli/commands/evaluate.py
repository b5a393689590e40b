"""`attn eval`: the error of a run on validation or test images, with the mean-location path or M averaged paths."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from attn_cli.commands.file_names import file_name, write_result
from attn_cli.config import command_sections
from attn_cli.data.photos import Birds
from attn_cli.data.splits import Pictures
from attn_cli.devices import choose_device, prepare_cpu, within_memory
from attn_cli.errors import Refused
from attn_cli.files import make_folder
from attn_cli.games import players
from attn_cli.inference.attention import attention
from attn_cli.inference.monte_carlo import Evaluation, evaluate, evaluate_views, paired_interval
from attn_cli.learning.restore import Restored, check_focus, check_same_images, check_sampling, restore
from attn_cli.runs import Run, commit, latest, open_run, versions


@within_memory
def run(config: command_sections.Evaluate) -> dict[str, Any]:
    """Evaluate, print a table, write evaluation-<split>-….json into the run folder; returns what was written."""
    threads = prepare_cpu(config.threads)
    found = open_run(config.run) if config.run else latest(config.outputs)
    restored = _restored(found, config)
    other = _restored(open_run(config.against), config) if config.against else None
    if other is not None:
        check_same_images(restored, other, config.split, "compare runs on")
    folder = make_folder(Path(config.output or found.path), "output")  # before what takes long
    images, labels = restored.data.fixed(config.split)
    greedy = config.mc_samples == 0
    start = time.perf_counter()
    outcome = _measured(restored, config, config.mc_samples)
    seconds = time.perf_counter() - start
    low, high = outcome.interval()
    error = "test_error" if config.split == "test" else "val_error"
    result: dict[str, Any] = {
        "run": str(found.path),
        "model": restored.config.model.name,
        "data": restored.config.data.name,
        "split": config.split,
        "checkpoint": config.checkpoint,
        "policy": "mean location" if greedy else "sampled",  # and of games the likeliest action
        "mc_samples": config.mc_samples,
        "average": None if greedy else config.average,
        "focus": config.focus_size if config.focus else None,
        "ten_crops": config.ten_crops,
        error: outcome.error(),
        f"{error}_interval": [low, high],
        f"{error}_deviation": outcome.deviation(),  # over the repeats
        "images": outcome.count,
        "mean_glimpses": outcome.mean_glimpses,  # per image and path; less than the most where sequences end early
        "most_glimpses": outcome.most_glimpses,
        "repeats": len(outcome.errors),
        "seed": config.seed,
        "seconds": seconds,
        "images_per_second": outcome.count * len(outcome.errors) * max(1, config.mc_samples) / seconds,
        "device": str(images.device),
        "threads": threads,
        "digest": restored.data.digest(config.split),
        "commit": commit(),
        "versions": versions(),
    }
    if restored.model.game is not None:
        result |= {"caught": 100 - outcome.error(), "players": players.compared(labels)}
    elif greedy and not restored.model.sequence:
        result |= _attention(restored, config, images, labels)
        if config.ten_crops:  # these errors are not those of the crop from the centre
            result["mislocalised_errors"] = None
    if other is not None or not greedy:  # compared with the other run, or with the mean-location path
        compared = _measured(other, config, config.mc_samples) if other else _measured(restored, config, 0)
        before, after = compared.wrong.double().mean(0), outcome.wrong.double().mean(0)
        result |= {"gain": compared.error() - outcome.error(), "gain_interval": paired_interval(before, after)}
    if other is not None:
        result |= {"against": str(other.run.path), "against_error": compared.error()}
    name = file_name("evaluation", config, f"against-{other.run.name}" if other else "")
    write_result(folder / name, result)
    return result


def _restored(run: Run, config: command_sections.Evaluate) -> Restored:
    restored = restore(run, config.checkpoint, choose_device(config.device), config.data)
    if config.mc_samples:
        check_sampling(restored, f"mc_samples={config.mc_samples}")
    if config.focus:
        check_focus(restored, config.focus_size)
    if config.ten_crops:
        _check_ten_crops(config, restored)
    return restored


def _measured(restored: Restored, config: command_sections.Evaluate, samples: int) -> Evaluation:
    """Along `samples` drawn paths, or with 0 along that of mean locations."""
    images, labels = restored.data.fixed(config.split)
    common: dict[str, Any] = {"repeats": config.repeats, "seed": config.seed, "batch_size": config.batch_size}
    if config.ten_crops:
        return evaluate_views(restored.model, cast(Birds, restored.data).ten_crops(config.split), labels, **common)
    focus = config.focus_size if config.focus else None
    paths: dict[str, Any] = {"samples": max(1, samples), "greedy": samples == 0, "average": config.average}
    return evaluate(restored.model, images, labels, **paths, **common, focus=focus)


def _attention(
    restored: Restored, config: command_sections.Evaluate, images: Pictures, labels: Tensor
) -> dict[str, Any]:
    """How much of its masks a model leaves black, how many of its errors come from looking elsewhere, how well its last
    region fits the object, at which magnification it looked, and in a video how often at the object.
    """
    model, objects = restored.model, getattr(restored.data, "boxes", None)
    boxes = objects(config.split) if objects is not None and model.moves else None
    if not model.masks and not model.zooms and boxes is None:
        return {}
    seen = attention(model, images, labels, boxes, config.seed)
    found: dict[str, Any] = {
        "mask_zeros": seen.mask_zeros,
        "mean_mask": seen.mean_mask,
        "mislocalised_errors": seen.mislocalised,
        "iou": seen.iou,
        "whole_image_iou": seen.whole_image_iou,
        "mean_magnification": seen.mean_magnification,
    }
    if seen.gaze is not None:
        found |= {
            "gaze_on_target": seen.gaze.on_target,
            "gaze_on_target_by_frame": seen.gaze.by_frame,
            "centre_on_target": seen.gaze.centre,
            "random_on_target": seen.gaze.random,
        }
    return {key: value for key, value in found.items() if value is not None}


def _check_ten_crops(config: command_sections.Evaluate, restored: Restored) -> None:
    if not hasattr(restored.data, "ten_crops"):
        raise Refused(f"ten_crops=true is for data=cub200, not for data={restored.config.data.name}.")
    if config.mc_samples:
        raise Refused(f"ten_crops=true averages over crops, mc_samples={config.mc_samples} over paths: choose one.")
