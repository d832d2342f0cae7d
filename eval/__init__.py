"""Measuring what an edit did: perplexity and task accuracy."""
