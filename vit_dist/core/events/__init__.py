"""TensorBoard event files: written, and read back without TensorFlow. No torch."""
