"""Two processes are one run: the same numbers as one process with the same batches, each image seen once, one writer.

The processes are real, forked from one that has paid for importing torch, and started as torchrun would start them.
"""

from __future__ import annotations

import csv
import importlib
import multiprocessing
import os
import socket
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attn_cli import processes
from attn_cli.commands.reproducing import composed
from attn_cli.config import schema
from attn_cli.errors import Refused
from attn_cli.learning.checkpoints import load
from attn_cli.places import LAUNCH, place

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["attn_cli.commands.train"])
DDP = schema.Trainer(name="ddp", accelerator="cpu", devices=2, strategy="ddp")


def in_group(folder: Path, rank: int, size: int, name: str, arguments: tuple[Any, ...], pipe: Any) -> None:
    """Calls this module's function `name` as process `rank` of `size`; its answer goes through the pipe."""
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if size > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        os.environ.update({LAUNCH: str(folder), **{key: str(value) for key, value in ranks.items()}})
    try:
        pipe.send(globals()[name](*arguments))
    except Refused as refused:
        pipe.send(refused)


def together(folder: Path, size: int, name: str, *arguments: Any) -> list[Any]:
    """What the processes answer, by rank; None for one that ended without an answer."""
    here = Path(__file__)
    if str(here.parent) not in sys.path:  # the other processes import the target by name, whatever pytest called it
        sys.path.append(str(here.parent))
    target = importlib.import_module(here.stem).in_group
    pipes, started = [], []
    for rank in range(size):
        ours, theirs = forks.Pipe()
        started.append(forks.Process(target=target, args=(folder, rank, size, name, arguments, theirs)))
        started[-1].start()
        theirs.close()
        pipes.append(ours)
    answers = []
    for pipe, process in zip(pipes, started, strict=True):
        try:
            answers.append(pipe.recv() if pipe.poll(120) else "too late")
        except EOFError:
            answers.append(None)
        process.join(60)
    return answers


# What is started in them.


def train(config: schema.Config) -> dict[str, Any]:
    """A whole `attn train`; also which images were trained on, in order, and which files were opened for writing."""
    from attn_cli.commands import train
    from attn_cli.learning.learner import Learner

    seen: list[bytes] = []
    written: list[str] = []
    original = Learner.loss

    def loss(self: Learner, batch: tuple[Tensor, Tensor, int, int]) -> Tensor:
        seen.extend(image.numpy().tobytes() for image in batch[0])
        return original(self, batch)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, Path)) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            written.append(str(arguments[0]))

    Learner.loss = loss
    sys.addaudithook(audit)
    result = train.run(config)
    return {"result": result, "seen": seen, "written": [name for name in written if name.startswith(config.outputs)]}


def begun(config: schema.Config) -> list[Any]:
    """Weights after training, which in the second process were drawn a little differently."""
    from attn_cli.data.batches import open_data
    from attn_cli.learning.training import fit, make_learner

    with processes.joined(place(config.trainer), "cpu"):
        data = open_data(config.data)
        learner = make_learner(config, data)
        with torch.no_grad():
            for parameter in learner.model.parameters():
                parameter += 0.01 * processes.rank()
        fit(learner, config)
    return [parameter.tolist() for parameter in learner.model.parameters()]


def evaluated(count: int, samples: int) -> Any:
    """Errors on `count` images of a real, untrained RAM."""
    from attn_cli.inference.monte_carlo import evaluate
    from attn_cli.models.ram import RAM

    torch.manual_seed(0)
    config = schema.Ram(hidden=16, glimpse_hidden=8, glimpse_features=16)
    model = RAM(config, schema.Glimpses(3, 4), schema.Scales(1), channels=1, classes=3)
    images = torch.randint(0, 256, (count, 1, 12, 12), dtype=torch.uint8)
    options = {"samples": samples, "greedy": samples == 1, "repeats": 3, "batch_size": 4 * samples}
    with processes.joined(place(replace(DDP, devices=int(os.environ.get("WORLD_SIZE", 1)), batch_size=6)), "cpu"):
        outcome = evaluate(model, images, torch.arange(count) % 3, **options)
    return outcome.count, outcome.errors, outcome.mean_glimpses, outcome.wrong.int().tolist()


def normalised(size: int) -> Any:
    """Output, gradients and statistics of a small network with batch normalisation, for a share of 12 images."""
    from attn_cli.learning.batch_norm import normalise_together

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4))
    images, weights = torch.randn(12, 2, 4, 4), torch.randn(12, 4)
    with processes.joined(place(replace(DDP, devices=size)) if size > 1 else None, "cpu"):
        if size > 1:
            normalise_together(network)
        own = slice(processes.rank(), None, size)
        for _ in range(2):
            output = network(images[own])
            network.zero_grad()
            (output * weights[own]).sum(1).square().mean().backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        processes.average_(gradients)
    return output.detach().numpy(), [g.numpy() for g in gradients], [b.numpy() for b in network.buffers()]


def left_alone(dies: str) -> Any:
    """A batch normalisation whose other half is killed before or after the forward pass."""
    from attn_cli.learning.batch_norm import normalise_together

    warnings.simplefilter("error", FutureWarning)
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with processes.joined(place(DDP), "cpu"):
        normalise_together(network)
        if dies == "forward" and processes.rank() == 1:
            os.kill(os.getpid(), 9)
        output = network(torch.randn(4, 2))
        processes.wait()
        if processes.rank() == 1:
            os.kill(os.getpid(), 9)
        output.square().sum().backward()


def far_from_zero(size: int) -> Any:
    """The variance that a normalisation of numbers near 30 finds."""
    from attn_cli.learning.batch_norm import normalise_together

    network = nn.Sequential(nn.BatchNorm1d(1, momentum=1.0))
    values = 30 + 0.03 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    with processes.joined(place(replace(DDP, devices=size)), "cpu"):
        normalise_together(network)
        network(values[processes.rank() :: size])
    return float(network[0].running_var)  # type: ignore[arg-type]


def exchanges(dies: bool) -> Any:
    """Everything that processes exchange; with `dies` the second one is killed on the way."""
    with processes.joined(place(DDP), "cpu"):
        rank = processes.rank()
        tensors = [torch.full((2, 2), float(rank)), torch.tensor(10.0 * rank)]
        processes.average_(tensors)
        if dies and rank == 1:
            os.kill(os.getpid(), 9)
        return (
            [tensor.tolist() for tensor in tensors],
            processes.total(torch.tensor([rank + 1, 10])).tolist(),
            processes.anywhere(rank == 1), processes.anywhere(False),
            processes.from_first(f"from {rank}"), processes.gathered(rank),
        )  # fmt: skip


def exchanges_under_slurm(port: int) -> Any:
    """The same between processes that find each other as those of srun do."""
    rank, size = os.environ.pop("RANK"), os.environ.pop("WORLD_SIZE")
    os.environ.update(
        SLURM_STEP_NUM_TASKS=size, SLURM_STEP_NUM_NODES="1", SLURM_STEP_NODELIST="localhost", SLURM_PROCID=rank,
        SLURM_LOCALID=rank, SLURM_JOB_ID="1000000", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    return exchanges(False)


# The tests.


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> schema.Config:
    """A small RAM on 40 images, with validation and test splits whose sizes are odd."""
    folder = tmp_path_factory.mktemp("ddp")
    random, arrays = np.random.default_rng(0), {}
    for split, count in {"train": 40, "validation": 13, "test": 17}.items():
        arrays[f"{split}_images"] = random.integers(0, 256, (count, 16, 16), np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 4
    np.savez(folder / "images.npz", **arrays)
    return schema.Config(
        model=schema.Ram(hidden=16, glimpse_hidden=8, glimpse_features=16),
        data=schema.Arrays(path=str(folder / "images.npz")),
        glimpses=schema.Glimpses(3, 6),
        trainer=replace(DDP, epochs=3, batch_size=10, compile="off", threads=1),
        optimizer=schema.Optimizer(lr=0.02),
        outputs=str(folder / "outputs"),
    )


@pytest.fixture(scope="module")
def both(config: schema.Config, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The same run by one process, and by two: three answers of `train`."""
    alone = replace(config, trainer=replace(config.trainer, devices=1, strategy="auto"))
    return [
        *together(tmp_path_factory.mktemp("one"), 1, "train", alone),
        *together(tmp_path_factory.mktemp("two"), 2, "train", config),
    ]


def test_two_processes_train_as_one(both: list[dict[str, Any]]) -> None:
    alone, first, second = (Path(answer["result"]["run"]) for answer in both)
    assert alone != first == second
    rows = [list(csv.DictReader((folder / "metrics.csv").open())) for folder in (alone, first)]
    for one, two in zip(*rows, strict=True):
        assert all(one[key] == two[key] for key in ("epoch", "step", "val_error"))
        for key in ("train_loss", "cross_entropy", "reinforce", "reward", "train_error"):
            assert float(one[key]) == pytest.approx(float(two[key]), rel=1e-4, abs=1e-6)
    assert float(rows[0][0]["train_loss"]) != pytest.approx(float(rows[0][-1]["train_loss"]), rel=1e-3)
    weights = [load(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (alone, first)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-5)


def test_weights_that_were_drawn_differently_are_made_equal(config: schema.Config, tmp_path: Path) -> None:
    short = replace(config, trainer=replace(config.trainer, epochs=1, limit_train_steps=1))
    first, second = together(tmp_path, 2, "begun", short)
    assert first == second and len(first) > 4


def test_a_weight_that_only_one_process_has_a_gradient_of(tmp_path: Path) -> None:
    """With one glimpse a target DRAM's upper LSTM is used by those images alone whose first label was right."""
    words = ["trainer=smoke", "data=digits_sequence", "data.train_limit=64", "model=dram_small", "glimpses.count=1"]
    trainer = replace(DDP, epochs=1, batch_size=4, limit_train_steps=12, compile="off", threads=1)
    two = replace(composed("train", [*words, "model.hidden=16", f"outputs={tmp_path}/outputs"]), trainer=trainer)
    one = replace(two, trainer=replace(trainer, devices=1, strategy="auto"))
    answers = [*together(tmp_path / "one", 1, "train", one), *together(tmp_path, 2, "train", two)]
    runs = [Path(answer["result"]["run"]) for answer in answers[:2]]
    weights = [load(run / "checkpoints" / "last.ckpt")["state_dict"] for run in runs]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-5)


def test_a_classifier_is_reset_to_the_same_weights_in_all_processes(config: schema.Config, tmp_path: Path) -> None:
    model = schema.SoftRam(features=8, hidden=6, coarse=9, filters=(2, 2, 4), reset_every=1, resets=1)
    soft = replace(config, model=model, trainer=replace(config.trainer, epochs=2))
    first, second = together(tmp_path, 2, "begun", soft)
    assert first == second and len(first) > 4


def test_the_results_agree(both: list[dict[str, Any]]) -> None:
    alone, first, second = (answer["result"] for answer in both)
    for key in ("val_error", "test_error", "test_error_interval", "test_error_deviation", "digests", "device"):
        assert alone[key] == first[key] == second[key], key
    assert alone["images_per_second"] * alone["seconds"] == pytest.approx(120)
    assert first["images_per_second"] * first["seconds"] == pytest.approx(120)
    assert (alone["devices"], first["devices"]) == (1, 2)


def test_processes_see_distinct_images_and_together_all(both: list[dict[str, Any]]) -> None:
    alone, first, second = (answer["seen"] for answer in both)
    assert len(set(alone)) == 40 and len(first) == len(second) == 60
    assert first == alone[::2] and second == alone[1::2]
    assert not set(first[:20]) & set(second[:20])  # of one epoch


def test_only_the_first_process_writes(both: list[dict[str, Any]]) -> None:
    _, first, second = (answer["written"] for answer in both)
    assert any("last.ckpt" in name for name in first) and any("result.json" in name for name in first)
    assert second == []


@pytest.mark.parametrize("count, samples", [(13, 1), (1, 1), (9, 3)])
def test_evaluation_counts_each_image_once(tmp_path: Path, count: int, samples: int) -> None:
    (alone,) = together(tmp_path, 1, "evaluated", count, samples)
    first, second = together(tmp_path, 2, "evaluated", count, samples)
    assert alone == first == second
    assert alone[0] == count and alone[2] == 3


def test_shares_are_a_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 3, 7):
        monkeypatch.setattr(processes, "size", lambda size=size: size)
        for count in (0, 1, 6, 20):
            shares = []
            for rank in range(size):
                monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
                shares.append(list(range(count))[processes.share(count)])
            assert sum(shares, []) == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_batch_normalisation_over_all_processes(tmp_path: Path) -> None:
    ((output, gradients, buffers),) = together(tmp_path, 1, "normalised", 1)
    for rank, (own_output, own_gradients, own_buffers) in enumerate(together(tmp_path, 2, "normalised", 2)):
        np.testing.assert_allclose(own_output, output[rank::2], rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(own_gradients + own_buffers, gradients + buffers, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_batch_normalisation_of_numbers_far_from_zero(tmp_path: Path) -> None:
    for found in together(tmp_path, 2, "far_from_zero", 2):
        assert found == pytest.approx(0.03**2, rel=0.1)


@pytest.mark.parametrize("dies", ["forward", "backward"])
def test_batch_normalisation_without_the_other_process_is_refused(tmp_path: Path, dies: str) -> None:
    first, second = together(tmp_path, 2, "left_alone", dies)
    assert isinstance(first, processes.Lost) and "one of them has ended" in str(first)
    assert second is None


def test_a_normalisation_that_does_more_is_not_replaced() -> None:
    from attn_cli.learning.batch_norm import normalise_together

    class BatchNormAct2d(nn.BatchNorm2d):
        """As timm has it: its activation is part of it."""

    network = nn.Sequential(nn.Conv2d(1, 2, 3), BatchNormAct2d(2))
    with pytest.raises(Refused, match="BatchNormAct2d.*train it in one process"):
        normalise_together(network)


EXCHANGED = ([[[0.5, 0.5], [0.5, 0.5]], 5.0], [3, 20], True, False, "from 0", [0, 1])


def test_exchanges(tmp_path: Path) -> None:
    assert together(tmp_path, 2, "exchanges", False) == [EXCHANGED, EXCHANGED]


def test_exchanges_under_slurm(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert together(tmp_path, 2, "exchanges_under_slurm", port) == [EXCHANGED, EXCHANGED]


def test_an_exchange_with_a_dead_process_is_refused(tmp_path: Path) -> None:
    first, second = together(tmp_path, 2, "exchanges", True)
    assert isinstance(first, processes.Lost) and "one of them has ended" in str(first)
    assert second is None


def test_a_process_alone_exchanges_nothing() -> None:
    tensor = torch.ones(2)
    processes.average_([tensor])
    assert (processes.rank(), processes.size(), processes.share(5)) == (0, 1, slice(0, 5))
    assert processes.anywhere(True) and processes.from_first(3) == 3 and processes.gathered(3) == [3]
