"""Attempts one after the other until a run is done, here and inside a Slurm job."""
