"""What runs, and what the coordinator is told."""
