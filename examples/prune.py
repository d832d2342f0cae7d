"""Prune a checkpoint, measure what that cost, and save it: python examples/prune.py [MODEL]."""

import sys

import excise


model = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
dense = excise.load_model(model)
pruned = excise.prune_model(excise.load_model(model), sparsity=0.5, recipe="wanda", progress=True)
print(pruned)
report = excise.evaluate_models({"dense": dense, "pruned": pruned}, perplexity="builtin", limit=12)
print(report)
pruned.save_pretrained("pruned")  # a plain HuggingFace folder, which stock transformers loads
