"""Models with a circuit planted by construction, and grades against it."""
