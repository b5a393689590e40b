"""Pictures reach the disk whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from attn_cli.errors import Refused


def write(path: Path | str, content: bytes) -> Path:
    """Write a file through a temporary one in the same folder, which is created if need be; returns the path.

    Errors: `Refused` if the file cannot be written; what was there before is then intact.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise Refused(f"{path} cannot be written ({reason}); free space or name another folder.") from error
    return path
