"""How processes learn their rank, and how a run is handed to SLURM."""
