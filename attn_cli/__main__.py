"""`python -m attn_cli` is `attn`."""

from __future__ import annotations

import sys

from attn_cli.cli import run

if __name__ == "__main__":
    sys.exit(run())
