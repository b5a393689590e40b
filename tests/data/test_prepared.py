"""Prepared files that are damaged, forged, on a full disk or in a read-only folder (rows 28, 29 and 34)."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from attn_cli.data import prepared, writing
from attn_cli.data.prepare import prepare
from attn_cli.data.prepared import Prepared
from attn_cli.errors import Refused


def example(count: int = 4) -> Prepared:
    images = {s: np.arange(count * 6, dtype=np.uint8).reshape(count, 2, 3) + i for i, s in enumerate(prepared.SPLITS)}
    labels = {s: np.arange(count, dtype=np.uint8) % 2 for s in prepared.SPLITS}
    return Prepared("digits", "made for a test", ("a", "b"), images, labels)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    writing.write(example(), tmp_path / "digits.h5")
    return tmp_path / "digits.h5"


def same(one: Prepared, other: Prepared) -> bool:
    return one.sha256() == other.sha256()


def read(path: Path) -> Prepared:
    prepared._verified.clear()  # as a new process would
    return prepared.read(path.stem, path.parent)


def test_round_trip(path: Path) -> None:
    assert same(read(path), example())
    assert [p.name for p in path.parent.iterdir()] == ["digits.h5"]


def test_a_missing_file_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        prepared.read("digits", tmp_path)


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "digits.h5").mkdir()
    said = "digits.h5 is a folder in the place of a prepared file: move it away."
    log: list[str] = []
    for use in (lambda: prepared.read("digits", tmp_path), lambda: prepare("digits", tmp_path, log=log.append)):
        with pytest.raises(Refused, match=re.escape(said)):
            use()
    assert log == [] and list(tmp_path.iterdir()) == [tmp_path / "digits.h5"]


def test_fuzz(path: Path) -> None:
    """1000 seeded changes of one to four bytes: refused with the command, or the same values."""
    whole, chance, refusals = path.read_bytes(), random.Random(0), 0
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            assert same(read(path), example())
        except Refused as refused:
            refusals += 1
            assert str(path) in str(refused) and "attn data prepare digits" in str(refused)
            assert "\n" not in str(refused)
    assert refusals > 100


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_cut(keep: float, path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(Refused, match="is damaged .* `attn data prepare digits"):
        read(path)


def test_verified_once_and_again_when_the_file_changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(path)
    calls = []
    true_hash = Prepared.sha256
    monkeypatch.setattr(Prepared, "sha256", lambda self: calls.append(1) or true_hash(self))
    prepared.read("digits", path.parent)
    assert calls == []
    with h5py.File(path, "r+") as file:
        file["test_images"][0, 0, 0] ^= 1
    with pytest.raises(Refused, match="its sha256 is"):
        prepared.read("digits", path.parent)
    assert calls


def forged(path: Path, change: Callable[[h5py.File], None]) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replace(name: str, **how: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **how)

    return change


def external_link(file: h5py.File) -> None:
    del file["test_images"]
    file["test_images"] = h5py.ExternalLink("secret.h5", "/secret")


def soft_link(file: h5py.File) -> None:
    del file["test_images"]
    file["test_images"] = h5py.SoftLink("/train_images")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4, 2, 3), np.uint8)
    layout[:] = h5py.VirtualSource("secret.h5", "secret", (4, 2, 3))
    del file["test_images"]
    file.create_virtual_dataset("test_images", layout)


def group(file: h5py.File) -> None:
    del file["test_images"]
    file.create_group("test_images")


HOSTILE = {
    "giant": (replace("test_images", shape=(2**40, 2, 3), dtype="u1", chunks=(1, 2, 3)), "6,597,069,766,656 bytes"),
    "giant, contiguous": (replace("test_images", shape=(2**40, 2, 3), dtype="u1"), "more than the limit"),
    "unstored": (replace("test_images", shape=(4, 2, 3), dtype="u1"), "stores 0"),
    "compressed": (replace("test_images", data=np.zeros((4, 2, 3), "u1"), compression="gzip"), "claims 24 bytes"),
    "wrong type": (replace("test_images", data=np.zeros((4, 2, 3), "f8")), "float64, expected uint8"),
    "strings": (replace("test_labels", data=["a", "b", "c", "d"]), "expected uint8"),
    "wrong dimensions": (replace("test_images", data=np.zeros((4, 6), "u1")), "expected 3 dimensions"),
    "scalar": (replace("test_images", data=np.uint8(1)), "expected 3 dimensions"),
    "another size": (replace("test_images", data=np.zeros((4, 3, 3), "u1")), r"\(3, 3\)"),
    "fewer labels": (replace("test_labels", data=np.zeros(3, "u1")), "4 images and 3 labels"),
    "label outside": (replace("test_labels", data=np.full(4, 2, "u1")), "a label 2"),
    "empty": (replace("test_images", data=np.zeros((0, 2, 3), "u1")), "0 images and 4 labels"),
    "external storage": (
        replace("test_images", shape=(4, 2, 3), dtype="u1", external=[("secret.h5", 0, 24)]),
        "stored in other files",
    ),
    "external link": (external_link, "is a link"),
    "soft link": (soft_link, "is a link"),
    "virtual": (virtual, "stored in other files"),
    "group": (group, "is no array"),
    "missing": (lambda file: file.__delitem__("test_images"), "test_images is missing"),
    "no attribute": (lambda file: file.attrs.__delitem__("about"), "no attribute 'about', so attn did not write it"),
    "attribute is no text": (lambda file: file.attrs.__setitem__("about", 5), "no text"),
    "attribute has a variable length": (lambda file: file.attrs.__setitem__("about", "{}"), "no text of a fixed"),
    "attribute is no JSON": (lambda file: file.attrs.__setitem__("about", np.bytes_(b"{")), "damaged"),
    "attribute is a list": (lambda file: file.attrs.__setitem__("about", np.bytes_(b"[]")), "damaged"),
    "attribute is an array": (lambda file: file.attrs.__setitem__("about", [b"{}", b"{}"]), "damaged"),
    "another format": (
        lambda file: file.attrs.__setitem__("about", np.bytes_(json.dumps({"format": 2}).encode())),
        "format is 2",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused(kind: str, path: Path) -> None:
    change, message = HOSTILE[kind]
    with h5py.File(path.parent / "secret.h5", "w") as file:
        file["secret"] = np.zeros((4, 2, 3), np.uint8)
    forged(path, change)
    with pytest.raises(Refused, match=message) as refused:
        read(path)
    assert str(path) in str(refused.value)


def test_another_set_under_this_name(path: Path) -> None:
    path.rename(path.with_name("mnist.h5"))
    with pytest.raises(Refused, match="it holds 'digits'.*attn data prepare mnist"):
        read(path.with_name("mnist.h5"))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(prepared.__file__).parents[2])}


READ_ONLY = """
import sys
from pathlib import Path
from attn_cli.config.schema import Scenes
from attn_cli.data.batches import open_data
from attn_cli.data.prepare import prepare
from attn_cli.errors import Refused
root = Path(sys.argv[1])
print(prepare("digits", root).name, open_data(Scenes("digits", "digits", root=str(root))).info.train)
try:
    (root / "probe").touch()
    print("writable")
except OSError:
    print("read-only")
try:
    prepare("mnist", root)
except Refused as refused:
    print(refused)
"""


def test_read_only_folder(digit_root: Path) -> None:
    """Prepared data works where nothing can be written; what is missing is refused in one sentence."""
    command = [sys.executable, "-c", READ_ONLY, str(digit_root)]
    if os.geteuid() == 0:  # for root, rights are no obstacle: a read-only mount in a name space of its own
        mount = f"mount --bind {digit_root} {digit_root} && mount -o remount,bind,ro {digit_root}"
        command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *command]
        probe = ["unshare", "--mount", "sh", "-c", mount]
        try:
            possible = subprocess.run(probe, capture_output=True).returncode == 0
        except OSError:
            possible = False
        if not possible:
            pytest.skip("no right to mount")
    else:
        digit_root.chmod(0o555)
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    finally:
        digit_root.chmod(0o755)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["digits.h5 60", "read-only"], done.stderr
    assert "mnist.h5 cannot be made (" in lines[2] and "ATTN_DATA" in lines[2]


def test_a_file_without_the_right_to_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object, **keys: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(prepared, "open_hdf5", denied)  # root may read everything, so the call stands in
    with pytest.raises(Refused, match="digits.h5 cannot be read .Permission denied."):
        read(path)


@pytest.mark.parametrize("changes", [{"name": "mnist"}, {"origin": "elsewhere"}, {"class_names": ("a", "c")}])
def test_the_hash_is_over_what_the_file_says_of_itself_too(changes: dict[str, Any]) -> None:
    assert dataclasses.replace(example(), **changes).sha256() != example().sha256()
