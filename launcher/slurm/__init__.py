"""Slurm: its commands and what they answer, cluster files, scripts, allocations."""
