"""Models with a bad behaviour trained into known components."""
