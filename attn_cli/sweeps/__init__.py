"""Sweeps: which jobs there are, what became of each, what is left to run, and the report."""
