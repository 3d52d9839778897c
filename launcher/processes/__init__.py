"""Processes on this machine: ranks of a run, runs side by side, kill tests."""
