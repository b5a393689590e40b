"""Environments that a model plays, and other players to compare it with."""
