"""The states of the global random generators: a resumed run draws what the uninterrupted one would have drawn."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


def random_states() -> dict[str, Any]:
    """The states of all global random generators, as a checkpoint can hold them."""
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    states["cuda"] = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []  # of the device that trains
    if "numpy" in sys.modules:
        import numpy as np

        state: Any = np.random.get_state(legacy=True)
        kind, keys, position, has_gauss, gauss = state
        states["numpy"] = (str(kind), keys.tolist(), int(position), int(has_gauss), float(gauss))
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Inverse of `random_states`; CUDA's only where there is a GPU in both."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state(states["cuda"][0])
    if "numpy" in states:
        import numpy as np

        np.random.set_state(states["numpy"])
