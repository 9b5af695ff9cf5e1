"""The loop, its callbacks' contract, the run's folder and progress."""
