"""Files that are whole or not there, after faults too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attn_cli import cli, files
from attn_cli.commands import data
from attn_cli.commands.data import config_of
from attn_cli.config import schema
from attn_cli.data.batches import open_data
from attn_cli.errors import Refused


def test_small_files_are_synced_before_the_rename_and_the_folder_after(tmp_path: Path, monkeypatch) -> None:
    calls: list[str] = []

    def fsync(descriptor: int, real=os.fsync) -> None:
        calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name.split('.')[1:2] or ['folder']}")
        real(descriptor)

    def replace(source: Path, target: Path, real=os.replace) -> None:
        calls.append(f"replace {Path(target).name}")
        real(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    files.write_atomically(tmp_path / "status.json", "{}")
    assert calls == ["fsync ['status']", "replace status.json", "fsync ['folder']"]


def test_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_atomically(path, "old")
    with pytest.raises(RuntimeError), files.replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_write_into_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=re.escape(str(tmp_path / "no" / "a.json"))):
        files.write_atomically(tmp_path / "no" / "a.json", "x")


def test_a_line_that_finds_no_room_is_refused() -> None:
    with pytest.raises(Refused, match=r"/dev/full could not be written \(No space left on device\)"):
        files.append(Path("/dev/full"), "epoch 1")


def test_stale_temporary_files_go_and_those_of_living_processes_stay(tmp_path: Path, ended_pid: int) -> None:
    stale = tmp_path / f".a.json.{ended_pid}-0123abcd.tmp"
    living = tmp_path / f".a.json.{os.getppid()}-0123abcd.tmp"
    other = tmp_path / f".b.json.{ended_pid}-0123abcd.tmp"
    for path in (stale, living, other):
        path.write_text("")
    files.write_atomically(tmp_path / "a.json", "x")
    assert set(os.listdir(tmp_path)) == {"a.json", living.name, other.name}


def test_a_folder_that_is_there_and_cannot_be_written_is_not_said_to_be_absent(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(Refused, match=f"^{re.escape(str(tmp_path))} cannot be written: set output=FOLDER.$"):
        files.make_folder(tmp_path, "output")


def test_a_file_is_replaced_with_the_rights_of_any_other(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    assert files.write_atomically(path, b"old") == path
    assert files.write_atomically(str(path), b"new") == path
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["p.png"]
    os.umask(mask := os.umask(0))
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "ä" * 127):
        assert files.write_atomically(tmp_path / name, "x").read_text() == "x"


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    files.write_atomically(tmp_path / "p.png", b"old")
    code = f"""
import resource, signal
from attn_cli import files
from attn_cli.commands import data
from attn_cli.commands.data import config_of
from attn_cli.config import schema
from attn_cli.data.batches import open_data
from attn_cli.errors import Refused
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files.write_atomically({str(tmp_path / "p.png")!r}, bytes(5000))
except Refused as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"{tmp_path / 'p.png'} could not be written (File too large): make room or choose another folder; "
        "what was there before is unchanged.\n"
    )
    assert (tmp_path / "p.png").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["p.png"]


def test_what_is_no_folder_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="could not be written"):
        files.write_atomically(tmp_path / "file" / "p.png", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Refused, match="folder could not be written"):
        files.write_atomically(tmp_path / "folder", b"x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_place_where_no_file_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("")
    for fine in (None, str(tmp_path / "old"), str(tmp_path / "new")):
        files.check_place(fine, "output")
    for wrong, said in ((tmp_path, "is a folder: name a file"), (tmp_path / "a" / "b", "folder that does not exist")):
        with pytest.raises(Refused, match=f"output={wrong} .*{said}"):
            files.check_place(str(wrong), "output")


def test_what_a_given_path_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert files.expanded("~/file") == tmp_path / "file"
    with pytest.raises(Refused, match="^data.path=~nobody-here/x begins with a home folder that does not exist"):
        files.expanded("~nobody-here/x", "data.path")
    assert [files.kind_of(tmp_path / name) for name in (".", "file", "none", "file/none", "a\0b")] == [
        "folder", "file", None, None, None,
    ]  # fmt: skip
    with pytest.raises(Refused, match=r"^data.path=x+ cannot be read \(File name too long\)"):
        files.kind_of(Path("x" * 300), "data.path")


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["runs", "--outputs", LONG],
        ["eval", f"run={LONG}"],
        ["eval", f"outputs={LONG}"],
        ["show", f"run={LONG}"],
        ["train", f"resume={LONG}"],
        ["train", f"init_from={LONG}"],
        ["train", "-m", f"resume_sweep={LONG}"],
        ["cost", f"output={LONG}/x.json"],
        ["bench", f"output={LONG}/x.json"],
    ],
)
def test_a_run_or_folder_that_cannot_be_is_refused(words: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"attn {words[0]}: ") and "File name too long" in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_searched_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o600)
    with pytest.raises(Refused, match=r"x cannot be read \(Permission denied\)"):
        files.kind_of(tmp_path / "x")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", ["~nobody-here/x", "x" * 300])
def test_data_in_a_place_that_cannot_be_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for config in (schema.Folder(path=name), schema.Arrays(path=f"{name}.npz"), schema.Cub200(path=name)):
        with pytest.raises(Refused, match=f"^data.path={re.escape(config.path or '')} "):
            open_data(config)
    with pytest.raises(Refused, match=f"^{re.escape(name)} "):
        data.main(["info", name])
    if name.startswith("~"):
        monkeypatch.setenv("ATTN_DATA", name)
        with pytest.raises(Refused, match=f"^ATTN_DATA={re.escape(name)} begins with a home folder"):
            open_data(config_of("mnist"))
