"""Save, verify, keep and restore a run's state."""
