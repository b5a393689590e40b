"""Checkpoints: exact round trips, whole after every kind of crash, and nothing hostile is read."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attn_cli.errors import Refused
from attn_cli.learning import checkpoints
from attn_cli.learning.checkpoints import is_better, load, newest_valid, save
from attn_cli.learning.guards import VerifiedCheckpointIO
from attn_cli.learning.weights import check_optimizers, load_weights


def example(value: float = 0.0, step: int = 0) -> dict[str, Any]:
    """Everything that a checkpoint may hold."""
    generator = torch.Generator().manual_seed(7)
    return {
        "global_step": step,
        "value": value,
        "tensors": {
            "f32": torch.randn(3, 4, generator=generator) + value,
            "scalar": torch.tensor(3.5, dtype=torch.float64),
            "i64": torch.tensor([-(2**62), 2**62]),
            "u8": torch.arange(256, dtype=torch.uint8),
            "bf16": torch.randn(5, generator=generator).to(torch.bfloat16),
            "f16": torch.randn(3, generator=generator).half(),
            "bool": torch.tensor([[True], [False]]),
            "i32": torch.tensor(5, dtype=torch.int32),
            "empty": torch.empty(0, 3),
            "not finite": torch.tensor([math.nan, math.inf, -math.inf, -0.0]),
            "transposed": torch.arange(6.0).reshape(2, 3).T,
            "parameter": nn.Parameter(torch.ones(2)),
        },
        "generator": generator.get_state(),
        "numbers": [1, -1, 2**100, 0.1, -0.0, 1e-320, math.inf, -math.inf, math.nan, True, False, None],
        "nested": {"tuple": (1, (2.0, [None, ("x",)])), "empty": [(), [], {}], 5: {0: "int keys", "0": "text keys"}},
        "text": "é \ud800 \" \\ \n {'tensor': 'x'}",
        "lookalikes": [{"tensor": "f32"}, {"dict": []}, {"float": "inf"}, {"tuple": []}],
        "a.b": torch.zeros(1),
        "a": {"b": torch.ones(1)},
        "__metadata__": torch.zeros(2),
        "ordered": OrderedDict(z=1, a=2),
    }


def same(a: Any, b: Any) -> bool:
    """Equal in value, type and, for tensors, in every bit."""
    if isinstance(a, Tensor):
        bits = [x.detach().contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return type(b) is float and struct.pack("d", a) == struct.pack("d", b)
    return type(a) is type(b) and a == b


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.ckpt"


def test_round_trip_is_exact(path: Path) -> None:
    save(path, example())
    assert same(example(), load(path))


def test_loaded_tensors_do_not_share_memory_and_can_be_written(path: Path) -> None:
    save(path, {"a": torch.zeros(4), "b": torch.zeros(4)})
    loaded = load(path)
    loaded["a"] += 1
    assert loaded["b"].sum() == 0


def test_file_is_a_safetensors_file(path: Path) -> None:
    save(path, example())
    tensors = safetensors.torch.load_file(path)
    assert same(tensors["tensors.f32"], example()["tensors"]["f32"])
    assert same(tensors["tensors.bf16"], example()["tensors"]["bf16"])
    with safetensors.safe_open(path, "pt") as file:
        assert set(file.metadata()) == {"format", "structure", "sha256"}


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value",
    [
        object(),
        lambda: 0,
        {1, 2},
        b"bytes",
        1j,
        Path("x"),
        Point(1, 2),
        torch.float32,
        torch.Size([1]),
        torch.zeros(2).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, device="meta"),
        {1.5: 0},
        {True: 0},
        {None: 0},
        {"_target_": "os.system"},
        nn.Linear(1, 1),
    ],
    ids=lambda v: type(v).__name__,
)
def test_anything_else_is_a_type_error_that_says_where(path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=r"deep\.1\.here"):
        save(path, {"deep": [0, {"here": value}]})
    assert os.listdir(path.parent) == []


def test_numpy_float_is_not_silently_a_float(path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(TypeError, match="loss"):
        save(path, {"loss": numpy.float64(1.0)})


def test_endless_nesting_is_a_type_error(path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TypeError, match="levels"):
        save(path, {"loop": loop})


# Row 1: killed while writing.


def count_file_events(path: Path, new: dict[str, Any], stop_at: int | None) -> int:
    """Run save in a forked process that dies at its `stop_at`-th file event; returns how many events there were."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            events = 0

            def hook(name: str, _: tuple[Any, ...]) -> None:
                nonlocal events
                if name == "open" or name.startswith(("os.", "shutil.")):
                    events += 1
                    if events == stop_at:
                        os._exit(9)

            sys.addaudithook(hook)
            save(path, new, path.with_name("previous.ckpt"))
            os.write(writer, str(events).encode())
        finally:
            os._exit(0)
    os.close(writer)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(reader) as file:
        text = file.read()
    assert code == (9 if stop_at else 0) or text
    return int(text or 0)


def test_killed_at_any_file_event_old_or_new_loads(tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        save(folder / "last.ckpt", training(example(1.0), 1))
        return folder

    new = training(example(2.0), 2)
    total = count_file_events(fresh("whole") / "last.ckpt", new, None)
    assert total >= 5  # list, open, link, rename, open the folder
    for n in range(1, total + 1):
        folder = fresh(str(n))
        count_file_events(folder / "last.ckpt", new, n)
        survivor = load(newest_valid(folder, log=pytest.fail))
        assert (folder / "last.ckpt").exists()
        assert same(training(example(1.0), 1), survivor) or same(new, survivor)
        save(folder / "last.ckpt", new)  # the next save works and tidies up
        assert {p.name for p in folder.iterdir()} <= {"last.ckpt", "previous.ckpt"}
        assert same(new, load(folder / "last.ckpt"))


def test_kill_9_at_any_moment_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    payload = [{"n": torch.full((300_000,), float(i))} for i in range(2)]
    save(path, payload[0])
    delays = random.Random(0)
    for _ in range(12):
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    save(path, payload[1])
                    save(path, payload[0])
            finally:
                os._exit(1)
        time.sleep(delays.uniform(0.005, 0.04))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        loaded = load(path)["n"]
        assert any(torch.equal(loaded, p["n"]) for p in payload)
    save(path, payload[0])
    assert os.listdir(tmp_path) == ["last.ckpt"]


# Row 2: power loss.


def test_synced_before_the_rename_and_the_folder_after(path: Path, monkeypatch) -> None:
    save(path, {"a": 1})
    calls = []

    def fsync(descriptor: int, real=os.fsync) -> None:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        size = os.fstat(descriptor).st_size
        calls.append("fsync folder" if target == str(path.parent) else f"fsync {size} bytes in {Path(target).parent}")
        real(descriptor)

    def replace(source: Any, target: Any, real=os.replace) -> None:
        calls.append(f"replace {Path(target).name}")
        real(source, target)

    def link(source: Any, target: Any, real=os.link) -> None:
        calls.append(f"link {Path(target).name}")
        real(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "link", link)
    save(path, {"a": torch.zeros(1000)}, keep_as=path.with_name("previous.ckpt"))
    size = path.stat().st_size
    expected = [f"fsync {size} bytes in {path.parent}", "link previous.ckpt", "replace last.ckpt", "fsync folder"]
    assert calls == expected


def test_previous_is_kept_where_there_are_no_hard_links(path: Path, monkeypatch) -> None:
    def link(source: Any, target: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    for value in (1, 2, 3):
        save(path, {"a": value}, keep_as=path.with_name("previous.ckpt"))
    assert load(path) == {"a": 3} and load(path.with_name("previous.ckpt")) == {"a": 2}


# Row 3: disk full.


def test_full_disk_keeps_the_previous_and_leaves_no_temporary_file(path: Path) -> None:
    save(path, {"a": torch.ones(10)})
    code = (
        "import resource, sys, torch\n"
        "from attn_cli.learning.checkpoints import save\nfrom attn_cli.errors import Refused\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    save(sys.argv[1], {'a': torch.zeros(100_000)}, sys.argv[1] + '.previous')\n"
        "except Refused as refused:\n    print(refused); sys.exit(refused.exit_code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert str(path) in done.stdout and len(done.stdout.splitlines()) == 1
    assert os.listdir(path.parent) == ["last.ckpt"]
    assert torch.equal(load(path)["a"], torch.ones(10))


# Row 4: truncated or empty.


def training(nested: dict[str, Any], step: int) -> dict[str, Any]:
    """`nested` inside what Lightning needs to go on."""
    rest: dict[str, Any] = {"optimizer_states": [], "lr_schedulers": [], "loops": {}, "callbacks": {}, "epoch": 0}
    return {"state_dict": nested, **rest, "global_step": step, "pytorch-lightning_version": pl.__version__}


@pytest.mark.parametrize("cut", ["half", "one byte", "all", "last byte", "a byte more"])
def test_truncated_newest_is_passed_over_by_name(tmp_path: Path, cut: str) -> None:
    save(tmp_path / "previous.ckpt", training({"w": torch.ones(5)}, 10))
    newest = tmp_path / "last.ckpt"
    save(newest, training({"w": torch.ones(5)}, 20))
    assert newest_valid(tmp_path, log=pytest.fail) == newest
    whole = newest.read_bytes()
    cuts = {"half": whole[: len(whole) // 2], "one byte": whole[:1], "all": b"", "last byte": whole[:-1]}
    newest.write_bytes(cuts.get(cut, whole + b"\0"))
    with pytest.raises(Refused, match="last.ckpt"):
        load(newest)
    messages: list[str] = []
    assert newest_valid(tmp_path, messages.append) == tmp_path / "previous.ckpt"
    assert str(newest) in messages[0] and "previous.ckpt" in messages[1]


def test_no_valid_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no checkpoint in"):
        newest_valid(tmp_path)
    (tmp_path / "last.ckpt").write_bytes(b"")
    save(tmp_path / "best.ckpt", {"weights": 1})
    with pytest.raises(Refused, match=r"best\.ckpt.*last\.ckpt|last\.ckpt.*best\.ckpt"):
        newest_valid(tmp_path)


@pytest.mark.parametrize("change", [{"hyper_parameters": {"_class_path": "os.system"}}, {"datamodule": 1}])
def test_unknown_keys_of_a_training_checkpoint_are_refused(path: Path, change: dict[str, Any]) -> None:
    save(path, training({}, 0) | {"attn": {}})
    VerifiedCheckpointIO().load_checkpoint(path)
    save(path, training({}, 0) | change)
    with pytest.raises(Refused, match=next(iter(change))):
        VerifiedCheckpointIO().load_checkpoint(path)


# Row 5: one bit flipped.


def test_every_flipped_bit_is_refused(path: Path) -> None:
    save(path, example())
    whole = path.read_bytes()
    flips = random.Random(5)
    for _ in range(500):
        damaged = bytearray(whole)
        position = flips.randrange(len(whole) * 8)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            assert same(load(path), example()), f"bit {position} changed the content unseen"
        except Refused as refused:
            assert str(path) in str(refused)


# Rows 16, 17: code in a checkpoint.


class Payload:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_a_truncated_checkpoint_is_never_called_a_pickle(path: Path) -> None:
    """A pickle may begin with the byte 0x80, and so does a header of such a length."""
    lengths = set()
    for entries in range(64):
        save(path, {"w": torch.ones(5), "text": 8 * entries * "a"})
        lengths.add(path.read_bytes()[0])
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(Refused, match="announces a header"):
            load(path)
    assert 0x80 in lengths


@pytest.mark.parametrize("form", ["torch zip", "torch legacy", "pickle", "protocol 0"])
@pytest.mark.parametrize("forced", [False, True])
def test_pickles_are_refused_and_not_run(path: Path, form: str, forced: bool, monkeypatch) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    payload = training({"w": Payload(path.parent / "created")}, 1)
    if form.startswith("torch"):
        torch.save(payload, path, _use_new_zipfile_serialization=form == "torch zip")
    else:
        path.write_bytes(pickle.dumps(payload, 0 if form == "protocol 0" else None))
    for read in (load, VerifiedCheckpointIO().load_checkpoint):
        with pytest.raises(Refused, match="last.ckpt"):
            read(path)
    with pytest.raises(Refused):
        newest_valid(path.parent)
    assert os.listdir(path.parent) == ["last.ckpt"]
    torch.load(path, weights_only=False) if form.startswith("torch") else pickle.loads(path.read_bytes())
    assert (path.parent / "created").exists()  # the payload was a real one


@pytest.mark.parametrize("key", ["_target_", "_instantiator"])
def test_keys_that_name_code_are_refused(path: Path, key: str) -> None:
    structure = {"dict": [["callbacks", {"dict": [["x", [{"dict": [[key, "os.system"]]}]]]}]]}
    path.write_bytes(forge(structure, {}))
    with pytest.raises(Refused, match=key):
        load(path)


# Rows 18, 19: hostile headers, correctly signed.


def forge(structure: Any, entries: dict[str, Any], data: bytes = b"", **metadata: Any) -> bytes:
    """A file with a right checksum, whatever else is wrong with it."""
    text = structure if isinstance(structure, str) else json.dumps(structure)
    rows = [[name, e.get("dtype"), e.get("shape")] for name, e in entries.items()]
    digest = hashlib.sha256(json.dumps([checkpoints.FORMAT, text, rows]).encode() + data).hexdigest()
    meta = {"format": checkpoints.FORMAT, "structure": text, "sha256": digest} | metadata
    return raw({"__metadata__": meta, **entries}, data)


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: Any, start: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


ONE = {"dict": [["w", {"tensor": "w"}]]}
META = {"format": checkpoints.FORMAT, "structure": json.dumps(ONE), "sha256": "0" * 64}
HOSTILE = {
    "a view of 10^12 elements": forge(ONE, {"w": entry([10**6, 10**6], 0, 4)}, b"\0" * 4),
    "a width of 10^9": forge(ONE, {"w": entry([10**9, 256], 0, 10**9 * 1024)}, b"\0" * 8),
    "overflowing product": forge(ONE, {"w": entry([2**32, 2**32], 0, 0)}),
    "empty with huge dimensions": forge(ONE, {"w": entry([0, 2**47, 2**47], 0, 0)}),
    "negative size": forge(ONE, {"w": entry([-1, -1], 0, 4)}, b"\0" * 4),
    "fractional size": forge(ONE, {"w": entry([1.0], 0, 4)}, b"\0" * 4),
    "truth value as size": forge(ONE, {"w": entry([True], 0, 4)}, b"\0" * 4),
    "text as shape": forge(ONE, {"w": entry("1", 0, 4)}, b"\0" * 4),
    "a thousand dimensions": forge(ONE, {"w": entry([1] * 1000, 0, 4)}, b"\0" * 4),
    "offsets backwards": forge(ONE, {"w": entry([1], 4, 0)}, b"\0" * 4),
    "negative offset": forge(ONE, {"w": entry([1], -4, 0)}, b"\0" * 4),
    "offset that starts late": forge(ONE, {"w": entry([1], 2, 4)}, b"\0" * 4),
    "offset behind the end": forge(ONE, {"w": entry([1], 4, 8)}, b"\0" * 4),
    "overlap": forge(
        {"dict": [["w", {"tensor": "w"}], ["v", {"tensor": "v"}]]},
        {"w": entry([1], 0, 4), "v": entry([1], 0, 4)},
        b"\0" * 4,
    ),
    "gap": forge(
        {"dict": [["w", {"tensor": "w"}], ["v", {"tensor": "v"}]]},
        {"w": entry([1], 0, 4), "v": entry([1], 8, 12)},
        b"\0" * 12,
    ),
    "bytes after the tensors": forge(ONE, {"w": entry([1], 0, 4)}, b"\0" * 400),
    "unknown dtype": forge(ONE, {"w": entry([1], 0, 4, "F8_E5M2")}, b"\0" * 4),
    "dtype of another kind": forge(ONE, {"w": entry([1], 0, 4, ["F32"])}, b"\0" * 4),
    "sparse entry": forge(ONE, {"w": entry([1], 0, 4) | {"layout": "sparse"}}, b"\0" * 4),
    "entry without offsets": forge(ONE, {"w": {"dtype": "F32", "shape": [1]}}, b"\0" * 4),
    "entry that is a list": raw({"__metadata__": META, "w": [1]}, b"\0" * 4),
    "truth value of 2": forge(ONE, {"w": entry([1], 0, 1, "BOOL")}, b"\2"),
    "tensor that is not used": forge({"dict": []}, {"w": entry([1], 0, 4)}, b"\0" * 4),
    "tensor that is used twice": forge(
        {"dict": [["a", {"tensor": "w"}], ["b", {"tensor": "w"}]]}, {"w": entry([0], 0, 0)}
    ),
    "tensor that is not there": forge(ONE, {}),
    "unknown node": forge({"dict": [["w", {"pickle": "gASV"}]]}, {}),
    "node with two kinds": forge({"dict": [["w", {"float": "inf", "tuple": []}]]}, {}),
    "float of other text": forge({"dict": [["w", {"float": "1e5"}]]}, {}),
    "key of another kind": forge({"dict": [[None, 1]]}, {}),
    "key twice": forge({"dict": [["a", 1], ["a", 2]]}, {}),
    "pair of three": forge({"dict": [["a", 1, 2]]}, {}),
    "not a dictionary": forge([1], {}),
    "deep structure": forge('{"dict":[["a",' + "[" * 100 + "]" * 100 + "]]}", {}),
    "very deep structure": forge('{"dict":[["a",' + "[" * 200_000 + "]" * 200_000 + "]]}", {}),
    "very deep header": raw(b"[" * 200_000),
    "number of a million digits": forge('{"dict":[["a",' + "1" * 1_000_000 + "]]}", {}),
    "bare NaN": forge('{"dict":[["a",NaN]]}', {}),
    "structure that is no JSON": forge("{", {}),
    "extra metadata": forge({"dict": []}, {}, note="x"),
    "metadata of another kind": forge({"dict": []}, {}, sha256=5),
    "another format": forge({"dict": []}, {}, format="pt"),
    "no metadata": raw({"w": entry([1], 0, 4)}, b"\0" * 4),
    "name twice": raw(b'{"__metadata__":' + json.dumps(META).encode() + b',"w":1,"w":1}'),
    "header that is a list": raw([]),
    "header that is no JSON": raw(b"\xff" * 20),
    "header longer than the file": struct.pack("<Q", 2**63) + b"{}",
    "header of 2^64 - 1 bytes": b"\xff" * 8 + b"{}",
    "header larger than allowed": raw(b" " * (checkpoints.LARGEST_HEADER + 1)),
    "seven bytes": b"\0" * 7,
    "zeros": b"\0" * 1000,
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(path: Path, name: str, monkeypatch) -> None:
    path.write_bytes(HOSTILE[name])
    largest = 0

    def empty(shape: Any, *, real=torch.empty, **options: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, math.prod(shape))
        return real(shape, **options)

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(Refused, match="last.ckpt"):
        load(path)
    assert largest <= 1  # refused before memory was taken


def test_the_forger_can_write_good_files(path: Path) -> None:
    path.write_bytes(forge(ONE, {"w": entry([1], 0, 4)}, struct.pack("f", 2.5)))
    assert load(path) == {"w": torch.tensor([2.5])}


def test_sparse_file_of_terabytes_is_refused(path: Path) -> None:
    path.write_bytes(forge(ONE, {"w": entry([10**12], 0, 4 * 10**12)}))
    os.truncate(path, path.stat().st_size + 4 * 10**12)
    with pytest.raises(Refused, match="more than any model"):
        load(path)


def test_deflated_bomb_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(Refused, match="pickle"):
        load(path)


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ckpt")
    for name in ("pipe.ckpt", "missing.ckpt", "."):
        with pytest.raises(Refused, match=name):
            load(tmp_path / name)


# Row 15, row 20, Lightning.


@pytest.mark.parametrize(
    "value, best, better",
    [
        (5.0, None, True),
        (4.0, 5.0, True),
        (5.0, 5.0, False),
        (6.0, 5.0, False),
        (math.nan, None, False),
        (math.inf, None, False),
        (-math.inf, 5.0, False),
        (math.nan, 5.0, False),
        (5.0, math.nan, True),
        (5.0, math.inf, True),
        (None, None, False),
        (0.0, 1.0, True),
    ],
)
def test_only_a_finite_value_is_best(value: float | None, best: float | None, better: bool) -> None:
    assert is_better(value, best) is better


def small_module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d.update({"0.wieght": torch.zeros(1)}), ["0.wieght", "Did you mean '0.weight'"]),
        (lambda d: d.pop("0.weight"), ["lacks", "0.weight"]),
        (lambda d: d.update({"0.weight": torch.zeros(3, 4)}), ["(3, 4)", "(3, 2)"]),
        (lambda d: d.update({"0.weight": torch.zeros(3, 2).double()}), ["float64", "float32"]),
        (lambda d: d.update({"1.num_batches_tracked": torch.tensor(0.0)}), ["float32", "int64"]),
        (lambda d: d.update({"0.bias": [0.0, 0.0, 0.0]}), ["list", "float32"]),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_none_is_copied(path: Path, change: Any, words: list[str]) -> None:
    module, other = small_module(), small_module()
    with torch.no_grad():
        other[0].weight.add_(1)  # type: ignore[operator, union-attr]
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = dict(other.state_dict())
    change(state)
    save(path, {"state_dict": state})
    with pytest.raises(Refused) as refused:
        load_weights(module, load(path)["state_dict"], path)
    for word in [*words, str(path)]:
        assert word in str(refused.value)
    assert same(before, dict(module.state_dict()))


def test_weights_that_fit_are_copied(path: Path) -> None:
    module, other = small_module(), small_module()
    with torch.no_grad():
        other[0].weight.add_(1)  # type: ignore[operator, union-attr]
    save(path, {"state_dict": other.state_dict()})
    load_weights(module, load(path)["state_dict"], path)
    assert same(dict(module.state_dict()), dict(other.state_dict()))


class Tiny(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> Any:
        adam = torch.optim.Adam(self.parameters(), fused=True)
        one_cycle = torch.optim.lr_scheduler.OneCycleLR(adam, 0.1, total_steps=20)
        decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 0.9**step)
        return [adam], [{"scheduler": one_cycle, "interval": "step"}, {"scheduler": decay, "interval": "epoch"}]


def trainer(tmp_path: Path, module: Tiny, epochs: int) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        plugins=[VerifiedCheckpointIO(module)],
    )


def batches() -> DataLoader[Any]:
    return DataLoader(torch.randn(12, 2), batch_size=4)  # type: ignore[arg-type]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A checkpoint that Lightning's own code wrote through the plugin."""
    torch.manual_seed(0)
    module = Tiny()
    first = trainer(tmp_path, module, 2)
    first.fit(module, batches())
    first.save_checkpoint(tmp_path / "last.ckpt")
    expected = first._checkpoint_connector.dump_checkpoint(False)
    assert same(_plain(expected), load(tmp_path / "last.ckpt"))
    return tmp_path / "last.ckpt"


def _plain(value: Any) -> Any:
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def test_lightning_saves_and_resumes_through_the_plugin(trained: Path) -> None:
    module = Tiny()
    second = trainer(trained.parent, module, 3)
    second.fit(module, batches(), ckpt_path=str(trained))
    assert (second.global_step, second.current_epoch) == (9, 3)
    second.strategy.remove_checkpoint(trained)
    assert not trained.exists()


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda c: c["state_dict"].update({"layer.weight": torch.zeros(1, 2).double()}), "float64.*float32"),
        (lambda c: c["state_dict"].update({"layer.weight": torch.zeros(1, 3)}), r"\(1, 3\).*\(1, 2\)"),
        (lambda c: c["state_dict"].pop("layer.bias"), "layer.bias"),
    ],
)
def test_lightning_resume_with_wrong_weights_is_refused(trained: Path, edit: Any, words: str) -> None:
    checkpoint = load(trained)
    edit(checkpoint)
    save(trained, checkpoint)
    module = Tiny()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(Refused, match=words):
        trainer(trained.parent, module, 3).fit(module, batches(), ckpt_path=str(trained))
    assert same(before, dict(module.state_dict()))


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda s: s[0]["state"][0].update(exp_avg=torch.zeros(1, 2).double()), "float64.*float32"),
        (lambda s: s[0]["state"][1].update(exp_avg_sq=torch.zeros(7)), r"\(7,\).*\(1,\)"),
        (lambda s: s[0]["param_groups"][0].pop("betas"), "another optimiser than Adam"),
        (lambda s: s[0]["param_groups"][0].update(params=[0]), "another optimiser than Adam"),
        (lambda s: s[0]["state"].update({5: {}}), "parameter 5"),
        (lambda s: s[0].pop("state"), "another form"),
        (lambda s: s.clear(), "0 optimiser states"),
    ],
)
def test_optimiser_states_that_do_not_fit_are_refused(trained: Path, edit: Any, words: str) -> None:
    states = load(trained)["optimizer_states"]
    (adam,), _ = Tiny().configure_optimizers()
    check_optimizers([adam], states, trained)
    edit(states)
    with pytest.raises(Refused, match=words):
        check_optimizers([adam], states, trained)
