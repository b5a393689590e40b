"""`attn combine`: a forward and a backward reader of the same data, their answers put together."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attn_cli.commands.file_names import file_name, write_result
from attn_cli.config import command_sections
from attn_cli.data.splits import Pictures
from attn_cli.devices import choose_device, prepare_cpu, within_memory
from attn_cli.errors import Refused
from attn_cli.files import make_folder
from attn_cli.inference.combine import combine
from attn_cli.inference.intervals import wilson
from attn_cli.inference.monte_carlo import evaluation_noise, paired_interval
from attn_cli.inference.sequences import Reading, focused, read
from attn_cli.learning.restore import Restored, check_focus, check_same_images, check_sampling, restore
from attn_cli.runs import commit, open_run, versions


@within_memory
def run(config: command_sections.Combine) -> dict[str, Any]:
    """Errors of both readers and of their combination on the same images; writes combined-….json beside the forward
    run's results.
    """
    threads = prepare_cpu(config.threads)
    device = choose_device(config.device)
    forward, backward = _reader("forward", config, device), _reader("backward", config, device)
    check_same_images(forward, backward, config.split, "combine readers of")
    folder = make_folder(Path(config.output or forward.run.path), "output")  # before what takes long
    images, labels = forward.data.fixed(config.split)
    start = time.perf_counter()
    wrong = _wrong(forward, backward, images, labels, config)
    seconds = time.perf_counter() - start
    count = len(labels)
    rate = {name: 100 * values.float().mean().item() for name, values in wrong.items()}
    error = "test_error" if config.split == "test" else "val_error"
    result = {
        "forward": str(forward.run.path),
        "backward": str(backward.run.path),
        "data": forward.config.data.name,
        "split": config.split,
        "rule": config.rule,
        "focus": config.focus_size if config.focus else None,
        "mc_samples": config.mc_samples,
        "average": config.average if config.mc_samples else None,
        "forward_error": rate["forward"],
        "backward_error": rate["backward"],
        error: rate["combined"],
        f"{error}_interval": list(wilson(wrong["combined"].sum().item(), count)),
        "gain": rate["forward"] - rate["combined"],  # over the forward reader, in points
        "gain_interval": paired_interval(wrong["forward"], wrong["combined"]),
        "images": count,
        "seed": config.seed,
        "seconds": seconds,
        "device": str(device),
        "threads": threads,
        "digest": forward.data.digest(config.split),
        "commit": commit(),
        "versions": versions(),
    }
    name = file_name("combined", config, f"with-{backward.run.name}")
    write_result(folder / name, result)
    return result


def _reader(direction: str, config: command_sections.Combine, device: torch.device) -> Restored:
    path = config.forward if direction == "forward" else config.backward
    restored = restore(open_run(path), config.checkpoint, device, config.data)
    check_reader(restored, direction, direction)
    if config.focus:
        check_focus(restored, config.focus_size)
    if config.mc_samples:
        check_sampling(restored, f"mc_samples={config.mc_samples}")
    return restored


def check_reader(restored: Restored, direction: str, key: str) -> None:
    """Refuse, naming the key that gave the run, what does not read sequences in that direction."""
    given = f"{key}={restored.run.path}"
    if not restored.model.sequence:
        raise Refused(f"{given} answers with one label: a reader of sequences is needed.")
    trained = getattr(restored.config.model, "reader", "forward")
    if trained != direction:
        raise Refused(f"{given} was trained with model.reader={trained}: swap the two, or name another run.")


def _wrong(
    forward: Restored, backward: Restored, images: Pictures, labels: Tensor, config: command_sections.Combine
) -> dict[str, Tensor]:
    """bool (n,) per reader and for their combination: true where anything in the sequence is wrong."""
    M, n = max(1, config.mc_samples), len(labels)
    size = max(1, min(n, config.batch_size // M))
    parts: dict[str, list[Tensor]] = {"forward": [], "backward": [], "combined": []}
    noise = {
        # The readers' paths are independent of each other: each has its own seed.
        name: torch.stack(
            [evaluation_noise(config.seed, repeat, m, n, restored.model.steps, restored.model.noises) for m in range(M)]
        )
        for repeat, (name, restored) in enumerate((("forward", forward), ("backward", backward)))
    }
    for low in range(0, n, size):
        part = slice(low, low + size)
        readings: dict[str, Reading] = {}
        for name, restored in (("forward", forward), ("backward", backward)):
            paths, seen = noise[name][:, part].to(images.device), images[part]
            if config.focus:
                seen, _ = focused(restored.model, seen, config.focus_size)
            readings[name] = read(restored.model, seen, paths, greedy=config.mc_samples == 0, average=config.average)
            said = restored.model.order(labels[part])
            parts[name].append((readings[name].labels[-1] != said).any(-1))
        both = combine(
            readings["forward"].labels[-1],
            readings["backward"].labels[-1],
            readings["forward"].log_probs,
            readings["backward"].log_probs,
            config.rule,
        )
        parts["combined"].append((both != labels[part]).any(-1))
    return {name: torch.cat(values) for name, values in parts.items()}
