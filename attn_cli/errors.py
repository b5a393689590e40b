"""The one exception that a person is meant to read.

`Refused` carries a single sentence that names the file or key and what to do. The command line prints it on
stderr without a traceback and exits with `exit_code`. Imports nothing, so that any module can raise it.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Mapping
from typing import Any

NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without locks say


def install(extra: str) -> str:
    """How to get the packages of an extra, from a wheel or in a checkout."""
    pins = "" if extra == "ray" else "-c constraints.txt "  # Ray's packages want other versions than those
    return f"install attn-cli[{extra}], in a checkout with pip install {pins}-e '.[{extra}]'"


class Refused(Exception):
    """Bad input or a fault that `attn` recognises; `str(error)` is one complete sentence."""

    def __init__(self, sentence: str, exit_code: int = 1):
        super().__init__(sentence)
        self.exit_code = exit_code


class PartlyRefused(Refused):
    """Some of several runs that belong together failed; `result` is that of the others."""

    def __init__(self, sentence: str, result: Mapping[str, Any]):
        super().__init__(sentence)
        self.result = result


class Terminated(KeyboardInterrupt):
    """SIGTERM outside training: unwinds as Ctrl-C does, so that nothing half-written stays.

    A KeyboardInterrupt, because CPython's compiler, which runs when a module is imported, drops any other exception.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """A clause that names the closest valid spellings: " Did you mean 'sigma'?" or the whole list if it is short."""
    names = sorted(map(str, valid))
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.6)
    if close:
        return " Did you mean " + " or ".join(repr(c) for c in close) + "?"
    if not names:
        return ""
    shown = names if len(names) <= 12 else [*names[:12], "…"]
    return f" Valid: {', '.join(shown)}."
