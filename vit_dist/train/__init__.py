"""The loop, the train state, checkpoints, metrics and stop requests."""
