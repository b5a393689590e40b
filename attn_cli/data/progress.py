"""How far a long loop is: a bar if a person is looking, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

SECONDS = 20.0  # between two lines


def counted(items: Iterable[T], total: int, what: str, log: Callable[[str], object]) -> Iterator[T]:
    """The items themselves; `what` says what is being done, `total` how many there will be."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            yield from bar.track(items, total)
        return
    said = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - said > SECONDS:
            log(f"{what}: {done:,} of {total:,}")
            said = time.monotonic()
        yield item
