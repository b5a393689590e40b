"""attn: train, evaluate and look into visual attention models from the command line."""

from __future__ import annotations

__version__ = "0.1.0"
