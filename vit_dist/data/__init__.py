"""Shards, manifests, one exact order, and the stream that reads it."""
