"""Rebuilding any state from the topics: the same projections as live, in bulk."""
