"""Makes a prepared .h5: once, completely or not at all, also when several processes ask at the same time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from attn_cli.data import prepared, writing
from attn_cli.data.download import Original, checked_file, download
from attn_cli.data.prepared import Prepared
from attn_cli.errors import NO_LOCKS, Refused, nearest

Log = Callable[[str], object]
SOURCES = tuple(prepared.FORMS)


def prepare(
    name: str, root: Path, from_dir: Path | None = None, log: Log = print, *, skip_faulty: bool = False
) -> Path:
    """The path of the prepared file of the source, one of SOURCES, made first if it is missing or damaged.

    `from_dir` holds the original files (mnist, svhn, …), which are then checked and used instead of downloaded ones. Of
    several processes one works and the others wait and use its result; killed half-way, nothing is left that counts.
    `skip_faulty` leaves out images whose annotation is wrong (svhn). Raises Refused.
    """
    if name not in SOURCES:
        raise Refused(f"{name} is no data set that can be prepared.{nearest(name, SOURCES)}")
    if from_dir is not None and name == "digits":
        raise Refused(f"{name} is rendered on this machine: leave out --from, which is for original files.")
    path = prepared.path_of(name, root)
    prepared.check_file(path)
    if _damage(name, root) is None and not any(root.glob(f"{path.name}.*.part")):
        return path
    with _lock(path, log):
        damage = _damage(name, root)  # another process may have made the file while this one waited
        if damage is not None:
            if path.exists():
                log(f"making {path} again, as it is damaged ({damage})")
            # Left by a killed process: only the holder of the lock writes such files. Archives of svhn… have their own.
            downloads = [] if name in prepared.SEQUENCES else (root / "downloads" / name).glob("tmp*")
            for stale in (*root.glob(f".{path.name}.*.tmp"), *downloads):
                stale.unlink()
            if name in prepared.SEQUENCES:
                _build_house_numbers(name, root, from_dir, log, skip_faulty)
            elif name == "cub200":
                from attn_cli.data.sources import cub200

                cub200.build(_original(cub200.ARCHIVE, cub200.MIRRORS, name, root, from_dir, log), path, log)
            else:
                writing.write(_build(name, root, from_dir, log), path)
            log(f"prepared {path}")
        for part in root.glob(f"{path.name}.*.part"):
            with suppress(OSError):
                part.unlink()
    return path


def _damage(name: str, root: Path) -> Exception | None:
    """Why the prepared file cannot be used; None if it can."""
    try:
        prepared.read(name, root)
    except FileNotFoundError as error:
        return error
    except Refused as error:
        return error.__cause__ if isinstance(error.__cause__, Exception) else error
    return None


def _build(name: str, root: Path, from_dir: Path | None, log: Log) -> Prepared:
    if name == "digits":
        from attn_cli.data.sources import digits

        log(f"rendering {sum(digits.COUNTS.values()):,} digits into {root} (a few seconds, once)")
        return digits.build()
    if name == "cifar10":
        from attn_cli.data.sources import cifar10

        return cifar10.build(_original(cifar10.ARCHIVE, cifar10.MIRRORS, name, root, from_dir, log))
    from attn_cli.data.sources import mnist

    return mnist.build(lambda original: _original(original, mnist.MIRRORS, name, root, from_dir, log))


def _original(
    original: Original, mirrors: Sequence[str], name: str, root: Path, from_dir: Path | None, log: Log
) -> Path:
    """The original file with the right checksum, out of `from_dir` or fetched; raises Refused."""
    if from_dir is not None:
        return checked_file(from_dir / original.name, original.md5)
    folder = root / "downloads" / name
    return download(original.name, original.md5, original.size, mirrors, folder, data=name, log=log)


def _build_house_numbers(name: str, root: Path, from_dir: Path | None, log: Log, skip_faulty: bool) -> None:
    from attn_cli.data.sources import svhn

    folder = from_dir or root / "downloads" / "svhn"

    def fetch(original: svhn.Original) -> Path:
        if from_dir is not None:
            return folder / original.name
        with _lock(folder / "archives", log):  # which the data sets svhn… share
            for stale in folder.glob("tmp*"):
                stale.unlink()
            return download(original.name, original.sha256, original.size, svhn.MIRRORS, folder, data="svhn", log=log)

    svhn.build(name, root, fetch, log, skip_faulty)


@contextmanager
def _lock(path: Path, log: Log) -> Iterator[None]:
    """An exclusive lock beside `path`; released by the system when the process ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise Refused(
            f"{path} cannot be made ({error.strerror}): choose a writable folder with data.root, --root or ATTN_DATA."
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for another process that prepares {path}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:  # without a lock two may prepare at once; each renames a complete file
            if error.errno not in NO_LOCKS:
                raise
        yield
    finally:
        with suppress(OSError):
            os.close(handle)
