"""How runs stand, from their files and from Slurm's queue, and what can be done about it."""
