"""Typed, bounded configuration and the registry of names. Imports neither torch nor lightning."""
