"""A run as files: its directory, its checkpoints by name, its record in event files. No torch."""
