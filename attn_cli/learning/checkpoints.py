"""Checkpoints that are whole, verified, and run no code.

A checkpoint is one safetensors file. Every tensor of the nested dictionary is an entry, the rest is its metadata:

    format      FORMAT
    structure   the nesting: null, true, 1, 1.5, "text", [list], {"tuple": [...]}, {"dict": [[key, value], ...]},
                {"float": "inf"}, {"tensor": "entry name"}
    sha256      over format, structure, and the name, dtype, shape and bytes of every entry in order

`load` believes nothing before it has checked it: every size is compared with the size of the file before memory is
taken, and the checksum covers every byte. There is no pickle, so TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD changes nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from attn_cli.errors import Refused
from attn_cli.files import replacing

FORMAT = "attn checkpoint 1"
LARGEST_HEADER = 8 << 20  # bytes; a model of ten thousand tensors needs about 2 MB
LARGEST_FILE = 64 << 30  # bytes
DEEPEST = 32  # levels of nesting
CODE_KEYS = ("_target_", "_instantiator", "_instantiator_")  # Hydra and Lightning import what these name
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Lightning's own dictionary: training needs all of these to go on. OUR_KEYS may be there too; anything else is refused.
TRAINING_KEYS = (
    *("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "epoch", "global_step"),
    "pytorch-lightning_version",
)
OUR_KEYS = ("attn", "learner")  # of guards.Checkpoints, of the LightningModule


def save(path: str | Path, nested: dict[str, Any], keep_as: str | Path | None = None) -> None:
    """Write `nested` to `path`, all or nothing, to the disk; the old `path` stays as `keep_as` if that is given.

    Dictionaries with text or whole-number keys, lists, tuples, tensors (strided, of DTYPES), None, bool, int, float and
    str round-trip exactly (an OrderedDict as a dict); anything else is a TypeError that names where it is. A full disk
    or an unwritable folder is Refused, and what was there before is unchanged.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_encode(nested, (), tensors), allow_nan=False, separators=(",", ":"))
    entries = [(name, NAMES[t.dtype], list(t.shape)) for name, t in tensors.items()]
    digest = _digest(structure, entries)
    for tensor in tensors.values():
        digest.update(_bytes(tensor))
    metadata = {"format": FORMAT, "structure": structure, "sha256": digest.hexdigest()}
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for (name, dtype, shape), tensor in zip(entries, tensors.values(), strict=True):
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # safetensors aligns the data to 8 bytes
    if len(text) > LARGEST_HEADER or start > LARGEST_FILE:
        raise ValueError(f"{path}: {len(text)} bytes of structure and {start} of tensors are more than load() takes")
    with replacing(path, None if keep_as is None else Path(keep_as)) as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for tensor in tensors.values():
            file.write(_bytes(tensor))


def load(path: str | Path) -> dict[str, Any]:
    """Read and verify what `save` wrote, onto the CPU; raises Refused naming the file and what is wrong with it."""
    path = Path(path)
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Damaged("it is not a regular file")
            return _load(file, status.st_size)
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}): name another checkpoint or run.") from error
    except Damaged as error:
        raise Refused(f"{path} is not an intact checkpoint ({error}): use another one of the run.") from error


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of any safetensors file, by name; raises Refused."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise Refused(f"{path} is no safetensors file ({error}): name another file or a run folder.") from error


class Damaged(Exception):
    """What is wrong with a checkpoint, as a clause."""


def _load(file: io.BufferedReader, size: int) -> dict[str, Any]:
    if size < 8:
        raise Damaged(f"it has only {size} bytes")
    if size > LARGEST_FILE:
        raise Damaged(f"it has {size} bytes, more than any model here")
    first = file.read(8)
    (length,) = struct.unpack("<Q", first)
    if length > min(LARGEST_HEADER, size - 8):
        if length > LARGEST_HEADER and (first[:4] == b"PK\x03\x04" or first[:1] == b"\x80"):  # not ours, cut off
            raise Damaged("it is a pickle, which could run code and is never read")
        raise Damaged(f"it announces a header of {length} bytes in a file of {size}")
    metadata, entries = _parse_header(file.read(length), size - 8 - length)
    digest = _digest(metadata["structure"], entries)
    tensors: dict[str, Tensor] = {}
    for name, dtype, shape in entries:
        tensor = torch.empty(shape, dtype=DTYPES[dtype])
        view = _bytes(tensor)
        if view and file.readinto(view) != len(view):
            raise Damaged(f"it ends within {name}")
        digest.update(view)
        tensors[name] = tensor
    if digest.hexdigest() != metadata["sha256"]:
        raise Damaged("its content does not match its checksum")
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
            raise Damaged(f"{name} holds truth values other than 0 and 1")
    nested = _decode(_json(metadata["structure"]), tensors)
    if tensors:
        raise Damaged(f"its structure does not use the tensor {next(iter(tensors))}")
    if not isinstance(nested, dict):
        raise Damaged("its structure is not a dictionary")
    return nested


def _parse_header(text: bytes, data_size: int) -> tuple[dict[str, str], list[tuple[str, str, list[int]]]]:
    """The metadata and (name, dtype, shape) of each entry; the entries fill the data without gap or overlap."""
    header = _json(text)
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise Damaged("it was not written by attn")
    if set(metadata) != {"format", "structure", "sha256"} or not all(isinstance(v, str) for v in metadata.values()):
        raise Damaged("its metadata has other keys than attn writes")
    entries = []
    end = 0
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise Damaged(f"the entry {name!r} has other keys than dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise Damaged(f"the entry {name!r} has the unknown dtype {dtype!r}")
        if not _sizes(shape) or len(shape) > 16 or not _sizes(offsets) or len(offsets) != 2:
            raise Damaged(f"the entry {name!r} has a malformed shape or place")
        if offsets[0] != end or offsets[1] - end != math.prod(shape) * DTYPES[dtype].itemsize:
            raise Damaged(f"the entry {name!r} of shape {shape} does not fit its place in the file")
        end = offsets[1]
        entries.append((name, dtype, shape))
    if end != data_size:
        raise Damaged(f"its tensors take {end} bytes and the file has {data_size} for them")
    return metadata, entries


def _sizes(value: Any) -> bool:
    """Whole numbers whose product, empty dimensions aside, torch can count."""
    whole = isinstance(value, list) and all(type(n) is int and 0 <= n < 2**48 for n in value)
    return whole and math.prod(max(n, 1) for n in value) < 2**62


def _json(text: str | bytes) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise Damaged("a key occurs twice in it")
        return found

    def constant(name: str) -> Any:
        raise Damaged(f"it holds the bare word {name}")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise Damaged("its header is not JSON") from error


def _digest(structure: str, entries: Iterable[tuple[str, str, list[int]]]) -> Any:
    return hashlib.sha256(json.dumps([FORMAT, structure, [list(entry) for entry in entries]]).encode())


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array) if tensor.numel() else memoryview(b"")


def _encode(value: Any, where: tuple[str | int, ...], tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`; tensors go to `tensors` under a readable, unique name."""
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind in (Tensor, nn.Parameter):
        return {"tensor": _collect(value, where, tensors)}
    if len(where) >= DEEPEST:
        raise TypeError(f"{_place(where)} is nested deeper than {DEEPEST} levels")
    if kind in (list, tuple):
        items = [_encode(item, (*where, i), tensors) for i, item in enumerate(value)]
        return items if kind is list else {"tuple": items}
    if kind in (dict, OrderedDict):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{_place(where)} has the key {key!r}: keys must be text or whole numbers")
            if key in CODE_KEYS:
                raise TypeError(f"{_place((*where, key))} is a key that names code to run; a checkpoint holds none")
        return {"dict": [[key, _encode(item, (*where, key), tensors)] for key, item in value.items()]}
    raise TypeError(f"{_place(where)} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold")


def _collect(tensor: Tensor, where: tuple[str | int, ...], tensors: dict[str, Tensor]) -> str:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype not in NAMES:
        kind = f"{tensor.layout} tensor of {tensor.dtype}"
        raise TypeError(f"{_place(where)} is a {kind}, which a checkpoint cannot hold")
    name = base = _place(where)
    while name in tensors or name == "__metadata__":  # {"a.b": …} beside {"a": {"b": …}}
        name = f"{base}#{len(tensors)}"
    tensors[name] = tensor.detach().to("cpu").contiguous()
    return name


def _place(where: tuple[str | int, ...]) -> str:
    return ".".join(map(str, where)) or "the checkpoint"


def _decode(value: Any, tensors: dict[str, Tensor], depth: int = 0) -> Any:
    """The inverse of `_encode`; takes each tensor out of `tensors`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth > DEEPEST:
        raise Damaged(f"it is nested deeper than {DEEPEST} levels")
    if isinstance(value, list):
        return [_decode(item, tensors, depth + 1) for item in value]
    if len(value) == 1:
        ((kind, content),) = value.items()
        if kind == "float" and content in ("inf", "-inf", "nan"):
            return float(content)
        if kind == "tensor" and isinstance(content, str) and content in tensors:
            return tensors.pop(content)
        if kind == "tuple" and isinstance(content, list):
            return tuple(_decode(item, tensors, depth + 1) for item in content)
        if kind == "dict" and isinstance(content, list):
            return _decode_dict(content, tensors, depth)
    raise Damaged("its structure holds something that attn does not write")


def _decode_dict(content: list[Any], tensors: dict[str, Tensor], depth: int) -> dict[str | int, Any]:
    found: dict[str | int, Any] = {}
    for pair in content:
        if not isinstance(pair, list) or len(pair) != 2 or type(pair[0]) not in (str, int) or pair[0] in found:
            raise Damaged("its structure holds something that attn does not write")
        if pair[0] in CODE_KEYS:
            raise Damaged(f"it holds the key {pair[0]}, which names code to run")
        found[pair[0]] = _decode(pair[1], tensors, depth + 1)
    return found


def newest_valid(folder: str | Path, log: Callable[[str], None] = print) -> Path:
    """The checkpoint in `folder` that verifies and has come furthest; `log` is told which were passed over and why.

    Raises Refused where none verifies.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.ckpt"), key=lambda path: path.name != "last.ckpt")  # between equals, last.ckpt
    if not paths:
        raise Refused(f"There is no checkpoint in {folder}: the run ended before its first one; start a new run.")
    found: list[tuple[int, Path]] = []
    reasons = []
    for path in paths:
        try:
            found.append((training_state(path)["global_step"], path))
        except Refused as refused:
            reasons.append(str(refused))
    if not found:
        raise Refused(f"No checkpoint in {folder} can be used: " + " ".join(reasons))
    step, newest = max(found, key=lambda item: item[0])
    for reason in reasons:
        log(f"Passed over: {reason}")
    if reasons:
        log(f"Continuing from {newest} (step {step}).")
    return newest


def training_state(path: str | Path) -> dict[str, Any]:
    """A checkpoint that training can go on from; raises Refused."""
    checkpoint = load(path)
    wrong = [f"it lacks {key}" for key in TRAINING_KEYS if key not in checkpoint]
    wrong += [f"it holds the unknown key {key}" for key in checkpoint if key not in (*TRAINING_KEYS, *OUR_KEYS)]
    if not wrong and type(checkpoint["global_step"]) is not int:
        wrong = ["its global_step is not a whole number"]
    if wrong:
        raise Refused(f"{path} is no checkpoint to continue from ({wrong[0]}): use another one of the run.")
    return checkpoint


def is_better(value: float | None, best: float | None) -> bool:
    """Whether the error `value` may replace `best`: it must be finite, and lower than a finite `best`."""
    if value is None or not math.isfinite(value):
        return False
    return best is None or not math.isfinite(best) or value < best
