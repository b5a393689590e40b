"""Importing pictures is light."""

from __future__ import annotations

import subprocess
import sys


def test_no_pyplot_and_no_torch(tmp_path) -> None:
    (tmp_path / "m.csv").write_text("epoch,val_error\n1,2\n")
    code = f"""
import sys
from attn_cli.pictures import animation, curves, paths, tables
curves.learning_curves({str(tmp_path / "m.csv")!r}, {str(tmp_path / "c.png")!r})
print([name for name in ("matplotlib.pyplot", "torch", "tkinter") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
