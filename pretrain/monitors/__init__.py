"""What a run tells of itself while it trains: metrics, depth signals, progress."""
