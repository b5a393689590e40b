"""Learners, objectives, optimisers, checkpoints, and what guards a training run."""
