"""Choosing what goes, and taking it out of a checkpoint."""
