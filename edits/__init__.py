"""Edits: a few scaled components of one checkpoint; applied, verified and reverted on disk."""
