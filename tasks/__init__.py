"""Tasks: generators of prompts with the answers a model should and should not give."""
