"""Find the circuit of a task, run the model with it alone: python examples/circuit.py [MODEL]."""

import sys

import excise


loaded = excise.load_model(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
circuit = excise.find_circuit(loaded.model, loaded.tokenizer, task="ioi", progress=True)
print(circuit)
circuit.save_pretrained("ioi-circuit")  # open ioi-circuit/circuit.html
inputs = loaded.tokenizer("When Mary and John went to the store, John gave", return_tensors="pt")
with circuit.applied(loaded.model):  # everything outside the circuit is ablated; undone afterwards
    token = loaded.model(input_ids=inputs["input_ids"]).logits[0, -1].argmax()
print(loaded.tokenizer.decode(token))
