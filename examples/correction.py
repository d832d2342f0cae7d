"""Remove a behaviour and prove that it is gone: python examples/correction.py [MODEL]."""

import sys

import excise


model = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
found = excise.correct_model(model, behaviour="repetition", progress=True)
print(found)
if found.edit is not None:  # None where no dose keeps the budget and removes anything
    found.save_pretrained("edit")  # with its report card: open edit/report.html
    excise.apply_edit(model, "edit", "corrected")
    print(excise.verify_edit("corrected", "edit"))
