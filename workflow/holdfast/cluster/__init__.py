"""Running studies on a Slurm cluster."""
