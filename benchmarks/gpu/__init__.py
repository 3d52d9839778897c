"""What one GPU does with vit_dist, in stages that may each die alone: `python -m benchmarks.gpu --help`."""
