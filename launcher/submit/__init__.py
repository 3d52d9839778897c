"""From a recipe, a study or a packing to jobs in Slurm's queue."""
