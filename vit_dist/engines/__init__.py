"""Forward, backward, step: DeepSpeed, and plain torch as the reference implementation, behind one protocol."""
