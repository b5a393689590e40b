"""Training and commands away from the CPU, on a device that strict.py makes up: nothing mixes devices, no training step
makes the host wait, and the numbers are those of the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOFT = ["model=soft_ram", "scales.count=1", "model.dropout=0"]
STEPS = {
    "ram": ["data=cluttered_digits", "scales.count=3"],
    "ram, learned first": ["data=translated_digits", "model.first=learned", "model.reward=correct"],
    "ram, stops": ["data=digits", "model=ram_lstm", "model.stop=learned"],
    "ram, together": ["data=cluttered_digits", "trainer.parallel_seeds=2"],
    "soft_ram, together": ["data=cluttered_digits", *SOFT, "trainer.parallel_lrs=[0.001,0.002]"],
    "ram, scales": ["data=digits_scales", "model.scale=learned", "scales.count=1"],
    "ram, video": ["data=moving_digits_track", "model=ram_lstm"],
    "ram, catch": ["data=catch", "model=ram_catch", "data.games=64"],
    "dram": ["data=digits_pairs", "model=dram_mnist", "optimizer.attention=0.5"],
    "dram, sequences": ["data=digits_sequence", "model=dram_small", "glimpses.count=3"],
    "soft_ram": ["data=cluttered_digits", *SOFT, "data.warp=0.1"],
    "soft_ram, relative": ["data=digits_pairs", *SOFT, "model.centre=relative"],
    "soft_ram, sequences": ["data=digits_sequence", *SOFT, "glimpses.count=3"],
    "rsam": ["data=digits", "model=rsam", "model.hidden=196"],
    "draw_reader": ["data=cluttered_digits", "model=draw_reader", "scales.count=1"],
    "stn": ["data=cluttered_digits", "model=stn", "scales.count=1", "glimpses.count=1"],
    "convnet": ["data=digits_sum", "model=convnet_64_64_64_512"],
}  # fmt: skip
# To the last bit but where a CPU leaves out what does not count, and for an LSTM cell that is in one piece there.
ADDED_OTHERWISE = ("dram, sequences", "rsam")
SMALL = ["model.hidden=32", "data.train_limit=256"]
READER = ["data=digits_sequence", "model=dram_small", "glimpses.count=3", *SMALL]
RUNS = {
    "ram": ["data=cluttered_digits", *SMALL],
    "lstm": ["data=cluttered_digits", "model=ram_lstm", *SMALL],
    "stops": ["data=digits", "model.stop=learned", *SMALL],
    "zooms": ["data=digits_scales", "model.scale=learned", "scales.count=1", *SMALL],
    "watches": ["data=moving_digits_track", "model=ram_lstm", *SMALL],
    "plays": ["data=catch", "model=ram_catch", "data.games=64"],
    "forward": READER,
    "backward": [*READER, "model.reader=backward"],
    "soft": ["data=cluttered_digits", *SOFT, *SMALL],
    "rsam": ["data=digits", "model=rsam", "data.train_limit=256", "model.hidden=196"],
}
LARGER = ["data=digits_sequence_110", "focus=true"]
COMMANDS = {
    "eval": ["eval", "run=ram", "repeats=1"],
    "eval, paths": ["eval", "run=ram", "mc_samples=3", "repeats=1"],
    "eval, other run": ["eval", "run=ram", "against=lstm", "repeats=1"],
    "eval, stops": ["eval", "run=stops", "repeats=1"],
    "eval, scales": ["eval", "run=zooms", "repeats=1"],
    "eval, video": ["eval", "run=watches", "repeats=1", "split=validation"],
    "eval, game": ["eval", "run=plays", "split=validation"],
    "eval, masks": ["eval", "run=rsam"],
    "eval, noise": ["eval", "run=soft", "mc_samples=2", "repeats=1"],
    "eval, sequences": ["eval", "run=forward", "mc_samples=2", "repeats=1"],
    "eval, focus": ["eval", "run=forward", *LARGER],
    "combine": ["combine", "forward=forward", "backward=backward", "mc_samples=2"],
    "combine, focus": ["combine", "forward=forward", "backward=backward", "rule=average", *LARGER],
    "mc-average": ["mc-average", "run=lstm", "max_samples=2", "repeats=2"],
    "show": ["show", "run=ram", "images=2", "output=pictures"],
    "show, readers": ["show", "run=forward", "backward=backward", "images=2", "output=pictures"],
    "show, video": ["show", "run=watches", "images=1", "output=pictures"],
    "show, game": ["show", "run=plays", "images=1", "output=pictures"],
}
OTHERWISE = ("device", "seconds", "images_per_second")  # of a result: what differs from device to device


def on_both(**cases: Any) -> dict[str, Any]:
    """By case what the CPU and the device found, or a traceback; see run.py."""
    ended = subprocess.run(
        [sys.executable, Path(__file__).with_name("run.py")],
        input=json.dumps(cases), capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


@pytest.fixture(scope="module")
def steps() -> dict[str, Any]:
    return on_both(steps=STEPS)


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    return on_both(runs=RUNS, commands=COMMANDS)


@pytest.mark.parametrize("case", STEPS)
def test_training_steps(case: str, steps: dict[str, Any]) -> None:
    cpu, device = steps[case]
    assert isinstance(cpu, dict), cpu
    assert isinstance(device, dict), device
    assert (cpu["where"], device["where"], device["waits"]) == (["cpu"], ["strict:0"], [])
    if case in ADDED_OTHERWISE:
        assert device["losses"] == pytest.approx(cpu["losses"], rel=1e-5)
    else:
        assert (device["losses"], device["weights"]) == (cpu["losses"], cpu["weights"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", COMMANDS)
def test_commands(case: str, commands: dict[str, Any]) -> None:
    cpu, device = commands[case]
    assert isinstance(cpu, dict), cpu
    assert isinstance(device, dict), device
    kept = [{key: value for key, value in result.items() if key not in OTHERWISE} for result in (cpu, device)]
    assert kept[0] == kept[1]
    assert device.get("device", "strict:0") == "strict:0"
