"""Which components carry a behaviour: contrasts of relevance, and learned factors."""
