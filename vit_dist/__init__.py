"""vit_dist: pretraining of vision models on your own data, and the scaling curves that come out of it."""

__version__ = "0.1.0"
