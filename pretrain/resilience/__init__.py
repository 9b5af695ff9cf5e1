"""Ending well: signals, dead launchers."""
