"""What models cost, side by side."""
