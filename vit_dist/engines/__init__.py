"""Forward, backward, step: DeepSpeed, and plain torch as the oracle, behind one protocol."""
