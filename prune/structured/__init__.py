"""Structured pruning: whole neurons, heads and layers are really removed."""
