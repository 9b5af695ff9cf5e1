"""Plans, reports and comparisons made from files and configs; never from a live run."""
