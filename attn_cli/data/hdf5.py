"""Reading HDF5 that somebody else wrote: only plain arrays in the file itself, checked before anything is allocated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def open_hdf5(path: Path) -> h5py.File:
    """Open for reading, without HDF5's own file lock (it fails on some read-only and network file systems)."""
    return h5py.File(path, "r", locking=False)


def read_plain(file: h5py.File, name: str, *, dims: tuple[int, ...], limit: int) -> np.ndarray:
    """The whole data set `name` of the top level; raises ValueError as `plain` does, before memory is taken."""
    return plain(file, name, dims=dims, limit=limit)[()]


def plain(
    file: h5py.File,
    name: str,
    *,
    dims: tuple[int, ...],
    limit: int,
    dtype: Any = None,
    contiguous: bool = False,
    references: bool = False,
) -> h5py.Dataset:
    """The data set `name` of the top level, unread; raises ValueError, saying why, if it is not plain.

    Refused: links to elsewhere, external or virtual storage, a number of dimensions not in `dims`, another dtype than
    `dtype` (if given), types that are no plain number, more than `limit` bytes, and a shape that claims more than is
    stored (`contiguous`: stored as one uncompressed block of exactly the size of the array). With `references` it must
    hold references to objects of the same file instead of numbers.
    """
    link = file.get(name, getlink=True)
    if link is None:
        raise ValueError(f"{name} is missing")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{name} is a link to somewhere else")
    data = file[name]
    if not isinstance(data, h5py.Dataset):
        raise ValueError(f"{name} is no array")
    if data.is_virtual or data.external:
        raise ValueError(f"{name} is stored in other files")
    if data.shape is None or len(data.shape) not in dims:
        raise ValueError(f"{name} has shape {data.shape}, expected {' or '.join(map(str, dims))} dimensions")
    if references:
        if h5py.check_ref_dtype(data.dtype) is not h5py.Reference:
            raise ValueError(f"{name} has type {data.dtype}, expected references to objects")
    elif (dtype is not None and data.dtype != dtype) or data.dtype.kind not in "uifb":
        raise ValueError(f"{name} has type {data.dtype}, expected {np.dtype(dtype or np.uint8)}")
    size = math.prod(data.shape) * data.dtype.itemsize
    if size > limit:
        raise ValueError(f"{name} claims shape {data.shape} = {size:,} bytes, more than the limit of {limit:,}")
    if data.chunks is not None and math.prod(data.chunks) * data.dtype.itemsize > limit:
        raise ValueError(f"{name} is stored in chunks of {data.chunks}, more than the limit of {limit:,} bytes")
    stored = data.id.get_storage_size()
    if contiguous and (data.chunks is not None or stored != size):
        raise ValueError(f"{name} claims {size:,} bytes and stores {stored:,}")
    if size and not stored:
        raise ValueError(f"{name} claims {size:,} bytes and stores none")
    return data
