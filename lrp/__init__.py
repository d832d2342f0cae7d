"""The engine: layer-wise relevance propagation for Transformers, in gradient form."""
