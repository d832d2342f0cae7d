"""Targeted correction: find what carries a behaviour, scale it, and show what that did."""
