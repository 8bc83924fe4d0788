"""Running studies on a cluster: what jobs need, what a study costs, and Slurm."""
