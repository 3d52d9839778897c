"""What `vit-dist doctor` looks at on a machine, in a Slurm and in storage."""
