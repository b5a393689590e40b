"""Original files by HTTP, from several mirrors, kept only when their checksum is right."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attn_cli.errors import Refused

ROUNDS = 2  # times that every mirror is tried
PAUSE = 1.0  # seconds between rounds
TIMEOUT = (10, 60)  # seconds to connect, between two packets


@dataclass(frozen=True)
class Original:
    name: str
    md5: str
    size: int  # bytes


def checked_file(path: Path, md5: str) -> Path:
    """`path` itself if it is there with the right checksum; raises Refused with expected and actual hash."""
    try:
        with open(path, "rb") as file:
            actual = hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:
        raise Refused(
            f"{path} cannot be read ({error.strerror}): put the original file there or leave out --from."
        ) from error
    if actual != md5:
        raise Refused(f"{path} is not the original file: expected md5 {md5}, got {actual}; fetch it again.")
    return path


def download(
    name: str,
    checksum: str,
    size: int,
    mirrors: Sequence[str],
    folder: Path,
    *,
    data: str = "mnist",
    log: Callable[[str], object] = print,
) -> Path:
    """The path of the file in `folder`, fetched if it is missing or its checksum (md5 or sha256) is wrong.

    Every mirror is tried, then all of them once more. Raises Refused with the reason of each mirror (for a wrong
    checksum expected and actual); nothing that is not right stays in `folder`.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.ERROR)
    path = folder / name
    kind = "sha256" if len(checksum) == 64 else "md5"
    if path.exists() and not pooch.hashes.hash_matches(path, f"{kind}:{checksum}"):
        log(f"{path} is damaged (its {kind} is not {checksum}): fetching it again")
        path.unlink()
    reasons: dict[str, str] = {}
    for attempt in range(ROUNDS):
        if attempt:
            time.sleep(PAUSE)
        for mirror in mirrors:
            url = mirror + name
            try:
                fetcher = _Stream(name, size, log)
                return Path(pooch.retrieve(url, f"{kind}:{checksum}", fname=name, path=folder, downloader=fetcher))
            except (requests.RequestException, ValueError) as error:
                reasons[url] = _reason(error)
            except OSError as error:  # the disk, not the net
                raise Refused(
                    f"{path} cannot be written ({error.strerror}): free space there or choose another data.root."
                ) from error
    tried = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
    raise Refused(
        f"{name} cannot be downloaded ({tried}): try again later, or fetch the original files yourself and run "
        f"`attn data prepare {data} --from FOLDER`."
    )


class _Stream:
    """Downloader for pooch that never takes more than the file's known size and shows progress."""

    def __init__(self, name: str, size: int, log: Callable[[str], object]):
        self.name, self.size, self.log = name, size, log

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:
        import requests

        self.log(f"downloading {self.name} ({self.size / 1e6:.1f} MB) from {url}")
        plain = {"Accept-Encoding": "identity"}  # the bytes of the file itself, not unpacked on the way
        with requests.get(url, stream=True, timeout=TIMEOUT, headers=plain) as response, open(output_file, "wb") as out:
            response.raise_for_status()
            taken = 0
            for block in _progress(response.iter_content(1 << 16), self.name, self.size):
                taken += len(block)
                out.write(block)
                if taken > self.size:
                    raise ValueError(f"it sends more than the {self.size:,} bytes of the file")


def _progress(blocks: Iterable[bytes], name: str, size: int) -> Iterator[bytes]:
    """The blocks, with a progress bar while they arrive if a person is looking."""
    if not sys.stderr.isatty():
        yield from blocks
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=size)
        for block in blocks:
            bar.advance(task, len(block))
            yield block


def _reason(error: Exception) -> str:
    """Why one mirror failed, in a few words."""
    import requests

    text = str(error)
    hashes = re.search(r"expected (md5|sha256):(\w+) but got (\w+)", text)
    if hashes:
        return f"wrong content, expected {hashes[1]} {hashes[2]}, got {hashes[3]}"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return text or type(error).__name__
