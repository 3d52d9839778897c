"""Typed recipes: YAML, overrides, clear errors, an identity. No torch."""
