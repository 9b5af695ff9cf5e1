"""Ending well: signals, dead launchers, hangs."""
