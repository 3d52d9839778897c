"""From a grid to runs, and from event files to observations, fits and figures. No torch."""
