"""`python -m attn_cli` is `attn`."""

from __future__ import annotations

import sys

from attn_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
