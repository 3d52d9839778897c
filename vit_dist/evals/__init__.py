"""Evaluators: each yields (name, value). One file each."""
