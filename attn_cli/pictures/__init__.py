"""What a person sees of a run: glimpse paths, animations, curves and tables."""
