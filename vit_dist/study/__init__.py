"""A study: a grid over recipes, what it costs, and its runs on this machine."""
