"""A device other than the CPU for machines without a GPU. What lies "on" it has its numbers in the CPU's memory, so all
results are a CPU's; but as with a GPU an operation on tensors of both is refused, and the host knows a number of the
device only by waiting for it, which is noted.

PyTorch has one device type for others to fill, and this takes it for the whole process.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

aten = torch.ops.aten
READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default)


class _Backend(_DummyBackendModule):  # type: ignore[misc]
    """What autocast asks for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def is_autocast_enabled(self) -> bool:
        return False


_setup_privateuseone_for_python_backend("strict", backend_module=_Backend())
DEVICE = torch.device("strict", 0)
waits: list[str] = []  # what made the host wait, and the lines of attn_cli that did it, innermost first


class OnDevice(Tensor):
    """A tensor of the device."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> OnDevice:
        shape: dict[str, Any] = {"strides": numbers.stride(), "storage_offset": numbers.storage_offset()}
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, numbers.shape, dtype=numbers.dtype, device=DEVICE, **shape
        )
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operation, args, kwargs or {})


def numbers_of(value: Any) -> Any:
    """A tensor of the CPU with the same numbers; anything else as it is."""
    return value.numbers if isinstance(value, OnDevice) else value


def is_device(value: Any) -> bool:
    return value is not None and torch.device(value).type == DEVICE.type


def wait(what: str) -> None:
    frames = reversed(traceback.extract_stack())
    own = [f"{f.filename.rpartition('/attn_cli/')[2]}:{f.lineno}" for f in frames if "/attn_cli/" in f.filename]
    waits.append(f"{what}: {' < '.join(own[:4])}")


def run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation of tensors of the device, or one that makes such."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    here = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    to_device = bool(there) if kwargs.get("device") is None else is_device(kwargs["device"])
    if operation is aten.copy_.default and there and here:
        wait("copied")
    elif there and any(tensor.dim() for tensor in here):  # a GPU, too, takes a single number from the host
        raise RuntimeError(f"{operation} of tensors of the device and of the CPU")
    if there and operation in READS:
        wait(str(operation))
    if operation is aten.index.Tensor and any(
        numbers is not None and numbers.dtype == torch.bool for numbers in args[1]
    ):
        wait("indexed with bools")
    if operation is aten._to_copy.default and to_device != bool(there):
        wait("copied")
    kwargs = {**kwargs, "device": torch.device("cpu")} if kwargs.get("device") is not None else kwargs
    plain, options = tree_map(numbers_of, (args, kwargs))
    known = {id(tensor.numbers): tensor for tensor in there}  # what is changed in place stays the same tensor

    def placed(value: Any) -> Any:
        if not to_device or not isinstance(value, Tensor):
            return value
        return known[id(value)] if id(value) in known else OnDevice(value)

    return tree_map(placed, operation(*plain, **options))


class _Made(TorchDispatchMode):
    """Operations without tensors, such as torch.zeros."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operation, args, kwargs or {})


def lstm_cell(x: Tensor, state: tuple[Tensor, Tensor], *weights: Tensor) -> tuple[Tensor, Tensor]:
    """torch.lstm_cell, for which other devices have an operation of their own."""
    w_input, w_hidden, b_input, b_hidden = weights
    gates = nn.functional.linear(state[0], w_hidden, b_hidden) + nn.functional.linear(x, w_input, b_input)
    i, f, c, o = gates.chunk(4, 1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * c.tanh()
    return o.sigmoid() * cell.tanh(), cell


class _Functions(TorchFunctionMode):
    """What reads or writes the numbers of a tensor without an operation, and one that is none of a CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.tolist and isinstance(args[0], OnDevice):
            wait("tolist")
            return args[0].numbers.tolist()
        if function is torch.tensor and is_device(kwargs.get("device")):
            wait("torch.tensor")
            return OnDevice(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        if function is Tensor.new_tensor and isinstance(args[0], OnDevice):
            wait("new_tensor")
            return OnDevice(args[0].numbers.new_tensor(*args[1:], **kwargs))
        if function is torch._VF.lstm_cell and isinstance(args[0], OnDevice):  # type: ignore[attr-defined]
            return lstm_cell(*args)
        return function(*args, **kwargs)


def move(module: nn.Module, device: torch.device) -> nn.Module:
    """`module.to(DEVICE)`."""
    assert is_device(device)
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(OnDevice(weight.detach().clone()), weight.requires_grad)
        for name, value in part._buffers.items():
            part._buffers[name] = None if value is None else OnDevice(value.clone())
    return module


@contextmanager
def present() -> Iterator[None]:
    """The machine has the device."""
    with _Made(), _Functions():
        yield
