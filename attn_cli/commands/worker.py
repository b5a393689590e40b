"""One of the processes that commands/launch.py starts: `python -m attn_cli.commands.worker FOLDER RANK`.

It reads FOLDER/config.json, trains, and leaves there result.json (rank 0), or the sentence with which it ended in
said-RANK.json. Imports torch only after it can be stopped in an orderly way.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from attn_cli.cli import orderly_sigterm
from attn_cli.errors import Refused, Terminated


def main(folder: Path, rank: int) -> int:
    """Runs this process's part and returns its exit code, as `attn train` would."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        with orderly_sigterm():
            from attn_cli.commands import train
            from attn_cli.config import schema

            result = train.run(schema.load(json.loads((folder / "config.json").read_text())))
        if rank == 0:
            (folder / "result.json").write_text(json.dumps(result))
        return 0
    except Refused as refused:
        from attn_cli.processes import Lost

        said = {"sentence": str(refused), "exit_code": refused.exit_code, "lost": isinstance(refused, Lost)}
        with contextlib.suppress(OSError):  # whoever started this process may be gone, and the folder with it
            (folder / f"said-{rank}.json").write_text(json.dumps(said))
        return refused.exit_code
    except KeyboardInterrupt as stop:
        return 143 if isinstance(stop, Terminated) else 130


def _end_with(parent: int) -> None:
    """Stop as by SIGTERM, with a checkpoint, when the process that started this one is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _, *words = sys.argv
    del sys.argv[1:]  # where `train` looks for words beside resume=
    sys.exit(main(Path(words[0]), int(words[1])))
