"""Checkpoints: their format, writing, copies, restoring, and weights taken from them."""
