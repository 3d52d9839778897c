"""What was measured and fitted, as figures, tables, a page and TensorBoard curves."""
