"""Work on images, some at a time, on several threads."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

AT_ONCE = 64  # images in memory
MAX_THREADS = 8

A = TypeVar("A")
B = TypeVar("B")


def each(work: Callable[[A], B], items: Iterator[A]) -> Iterator[B]:
    """`work` of every item, in order, on several threads (Pillow releases Python's lock)."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS)) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as `folder.decode` does; the filters are those of the whole process
        while some := list(islice(items, AT_ONCE)):
            yield from pool.map(work, some)
