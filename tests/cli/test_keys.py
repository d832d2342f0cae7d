"""Every option of every verb that keeps something: it changes the key, or it says why it need not.

What is kept of a run is taken up by another only where all that it depends on is the same. A new
option fails here until it stands in `KEYED`, with a value that must change the key, or in `SAME`,
with the reason why it cannot change what is kept.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from excise.cli.main import group
from excise.core.errors import ExciseError
from excise.core.files.progress import Progress, digests
from excise.correction.data.recipes import BEHAVIOURS
from excise.tasks.ioi import ioi_prompts


PLACES = {
    "--output": "where the result goes",
    "--overwrite": "what happens to an older one",
    "--json": "how it is printed",
    "--dry-run": "stops before anything is kept",
    "--resume": "whether anything is kept",
    "--revision": "which weights are loaded: they are hashed as they are",
    "--load-in-4bit": "which weights are held: they are hashed as they are, scales and all",
    "--load-in-8bit": "which weights are held: they are hashed as they are, scales and all",
    "--allow-pickle": "whether a file is read at all: its weights are hashed",
    "--device": "the last bits of sums, not what is summed",
    "--device-map": "the last bits of sums, not what is summed",
}
ROWS = "measured anew; rows are kept by the store of excise eval, which has a key of its own"
JUDGED = "judged anew from the completions that are kept"
LATER = "chooses or tests with the scores, and only these are kept"
LM_EVAL = "the task's settings and documents are in the key: tests/eval/test_zero_shot.py"
UNITS = "is for whole units or a relevance, of which nothing is kept: --resume is refused there"

SAME: dict[str, dict[str, str]] = {
    "score": {
        "--dataset": "read into samples, which are hashed, as those of --text are",
        "--batch-size": "each sample's scores are those it would have alone",
    },
    "circuit": {
        "--scores": "nothing is scored, so nothing is kept",
        "--nodes": "the default of the level",
        "--weights": "is one sum over the prompts, of which nothing is kept",
        "--batch-size": "each prompt's scores are those it would have alone",
        "--allow-failing": "whether to go on, before anything is kept",
        **dict.fromkeys(
            ("--rank", "--ablation", "--faithfulness", "--size", "--refine", "--minimality",
             "--controls"), LATER),
    },
    "prune": {
        **dict.fromkeys(("--perplexity", "--window", "--limit"), ROWS),
        **dict.fromkeys(
            ("--components", "--relevance", "--rank", "--other-model", "--zero", "--compensate"),
            UNITS),
        "--layer-device": "the last bits of sums, not what is summed",
        "--offload": "where weights lie",
    },
    "correct": {
        "--sizes": "how much of the ranking is cut; a learned edit of each size is kept by itself",
        "--factor": "what is done with the ranking; a learned edit is kept by itself",
        **dict.fromkeys(
            ("--budget", "--least", "--gate", "--min-samples", "--rare", "--controls",
             "--durability"),
            LATER),
        **dict.fromkeys(
            ("--window", "--windows", "--task", "--task-samples", "--split", "--no-cache"), ROWS),
        "--show-text": "what is written into the report",
    },
    "eval": {
        **dict.fromkeys(("--scorer", "--threshold", "--max-empty"), JUDGED),
        **dict.fromkeys(("--zero-shot", "--zero-shot-folder", "--zero-shot-limit"), LM_EVAL),
        "--gate": "reads what was measured",
        "--attribution": "reads which texts were measured",
        "--batch-size": "each row is what it would be alone",
        "--no-cache": "whether anything is kept",
        "--show-text": "what is written into the report",
    },
}  # fmt: skip

TABLE = "--calibration a.txt --samples 2 --length 8 --perplexity a.txt --window 8 --limit 2"
FILES = "--undesired a.txt --general b.txt"
TEXT = "--perplexity text.txt --window 16 --windows 2"
WORDS = "--prompts a.txt --judge words:a.words"
BASES = {
    "score": {
        "": "--text a.txt --samples 2 --length 8",
        "task": "--task ioi --samples 2",
        "prompts": "--prompts a.jsonl --samples 2",
    },
    "circuit": {
        "": "--task ioi --samples 2 --allow-failing",
        "prompts": "--prompts a.jsonl --allow-failing",
    },
    "prune": {
        "": "--sparsity 0.5 --calibration a.txt --samples 2 --length 8",
        "compare": f"{TABLE} --compare wanda",
        "sweep": f"{TABLE} --sweep 0.5",
    },
    "correct": {
        "": f"{FILES} {TEXT}",
        "repetition": f"--behaviour repetition {TEXT}",
        "written": f"--behaviour toxicity {WORDS} --completions 2 {TEXT}",
    },
    "eval": {
        "": "--perplexity a.txt --window 8 --limit 4",
        "toxicity": "--toxicity a.txt --scorer words:a.words --completions 2 --new-tokens 2 "
        "--max-prompts 4",
        "task": "--task ioi --samples 4",
    },
}
"""Options that a change is added to; the last one given counts."""

KEYED: dict[str, dict[str, tuple[str, str]]] = {
    "score": {
        "--task": ("task", "--task induction"),
        "--text": ("", "--text b.txt"),
        "--prompts": ("prompts", "--prompts other-answers.jsonl"),
        "--samples": ("", "--samples 3"),
        "--length": ("", "--length 9"),
        "--method": ("", "--method cp-lrp"),
        "--target": ("", "--target next-tokens-logit"),
        "--components": ("", "--components heads"),
        "--weights": ("", "--weights *q_proj"),
        "--aggregate": ("", "--aggregate abs"),
        "--epsilon": ("", "--epsilon 0.1"),
        "--steps": ("", "--steps 4"),
        "--skip-first-token": ("", "--skip-first-token"),
        "--seed": ("task", "--seed 1"),
    },
    "circuit": {
        "--task": ("", "--task induction"),
        "--counterfactual": ("", "--counterfactual swapped"),
        "--prompts": ("prompts", "--prompts other-counterfactuals.jsonl"),
        "--samples": ("", "--samples 3"),
        "--method": ("", "--method eap"),
        "--kv-groups": ("", "--kv-groups"),
        "--neurons": ("", "--neurons"),
        "--edges": ("", "--edges"),
        "--seed": ("", "--seed 1"),
    },
    "prune": {
        "--sparsity": ("", "--sparsity 0.4"),
        "--recipe": ("", "--recipe wanda"),
        "--criterion": ("", "--criterion magnitude"),
        "--scope": ("", "--scope layer"),
        "--order": ("", "--order oneshot"),
        "--update": ("", "--update obs"),
        "--budget": ("", "--budget lrp"),
        "--budget-unit": ("", "--budget-unit matrix"),
        "--floor": ("", "--floor 0.1"),
        "--ceiling": ("", "--ceiling 0.9"),
        "--rescore": ("", "--rescore 1"),
        "--steps": ("", "--steps 2"),
        "--iterations": ("", "--iterations 5"),
        "--damping": ("", "--damping 0.05"),
        "--tune": ("", "--tune 1"),
        "--calibration": ("", "--calibration b.txt"),
        "--samples": ("", "--samples 3"),
        "--length": ("", "--length 9"),
        "--batch-size": ("", "--batch-size 2"),
        "--seed": ("", "--seed 1"),
        "--compare": ("compare", "--compare magnitude"),
        "--sweep": ("sweep", "--sweep 0.3"),
    },
    "correct": {
        "--behaviour": ("repetition", f"--behaviour toxicity {WORDS}"),
        "--undesired": ("", "--undesired d.txt"),
        "--general": ("", "--general a.txt"),
        "--prompts": ("written", "--prompts b.txt"),
        "--judge": ("written", "--judge words:b.words"),
        "--examples": ("", "--examples 40"),
        "--completions": ("written", "--completions 3"),
        "--component": ("", "--component heads"),
        "--method": ("", "--method magnitude"),
        "--attribution-dtype": ("", "--attribution-dtype bfloat16"),
        "--perplexity": ("repetition", "--perplexity b.txt"),
        "--new-tokens": ("written", "--new-tokens 3"),
        "--seed": ("", "--seed 1"),
    },
    "eval": {
        "--perplexity": ("", "--perplexity b.txt"),
        "--protocol": ("", "--protocol stride"),
        "--window": ("", "--window 9"),
        "--limit": ("", "--limit 3"),
        "--toxicity": ("toxicity", "--toxicity b.txt"),
        "--completions": ("toxicity", "--completions 3"),
        "--new-tokens": ("toxicity", "--new-tokens 3"),
        "--temperature": ("toxicity", "--temperature 0.5"),
        "--top-p": ("toxicity", "--top-p 0.5"),
        "--max-prompts": ("toxicity", "--max-prompts 3"),
        "--repetition": ("", "--repetition"),
        "--task": ("task", "--task induction"),
        "--samples": ("task", "--samples 3"),
        "--split": ("task", "--split train"),
        "--seed": ("task", "--seed 1"),
    },
}


class StoppedError(ExciseError):
    """The key is known, and nothing else is wanted."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("files")
    prompts = ioi_prompts(tiny_tokenizer, 60)
    parts = {"a": prompts, "b": ioi_prompts(tiny_tokenizer, 60, 3, "validation"),
             "c": ioi_prompts(tiny_tokenizer, 60, 4, "test"),
             "d": ioi_prompts(tiny_tokenizer, 60, 9)}  # fmt: skip
    for name, found in parts.items():
        (folder / f"{name}.txt").write_text("\n".join(p.clean + " ." for p in found) + "\n")
        (folder / f"{name}.words").write_text(found[0].clean.split()[1] + "\n")
    (folder / "text.txt").write_text((folder / "c.txt").read_text())
    for name, change in {
        "a": lambda p: p,
        "other-answers": lambda p: replace(p, answer=p.wrong, wrong=p.answer),
        "other-counterfactuals": lambda p: (
            replace(p, counterfactual=p.clean) if prompts.index(p) % 2 else p
        ),
    }.items():
        rows = (json.dumps(vars(change(prompt))) + "\n" for prompt in prompts[:16])
        (folder / f"{name}.jsonl").write_text("".join(rows))
    return folder


Keys = Callable[..., list[dict[str, str]]]


@pytest.fixture
def keys(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    """Return `keys(verb, model, base, more)`: all that a run would keep its finds under."""
    from excise.eval import models, run
    from excise.prune import progress as pruning

    found: list[dict[str, str]] = []

    def load(self: Progress, name: str, asked: Mapping[str, Any]) -> None:
        found.append(digests(asked))
        if name != "behaviour" or asked["behaviour"] in BEHAVIOURS:  # else the ranking comes too
            raise StoppedError("stopped")

    def check(self: pruning.Progress, asked: Mapping[str, Any]) -> None:
        found.append(digests(asked))
        raise StoppedError("stopped")

    class Store:
        def __init__(self, folder: Path | None, identity: Mapping[str, Any]):
            found.append(digests(identity))
            self.rows: dict[int, Any] = {}

    def stop(*_: Any) -> None:
        raise StoppedError("stopped")

    def keys(verb: str, model: Path, base: str, more: str = "") -> list[dict[str, str]]:
        with monkeypatch.context() as patched:
            patched.chdir(files)
            if verb == "eval":
                patched.setattr(run, "Store", Store)
                patched.setattr(run, "_measured", lambda *_: [])
                patched.setattr(models, "Report", stop)
            else:
                patched.setattr(Progress, "load", load)
                patched.setattr(pruning.Progress, "check", check)
            resumed = [] if verb == "eval" else ["--resume", "-o", str(tmp_path / "out")]
            words = [verb, str(model), *BASES[verb][base].split(), *resumed, *more.split()]
            found.clear()
            said = CliRunner().invoke(group, words).stderr
        assert "excise: stopped" in said, said
        return list(found)

    return keys


def options_of(verb: str) -> list[str]:
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    return [max(p.opts, key=len) for p in command.params if isinstance(p, click.Option)]


def test_every_verb_that_keeps_something_is_here():
    keeping = {
        name for name in group.list_commands(click.Context(group)) if "--resume" in options_of(name)
    }
    assert keeping | {"eval"} == KEYED.keys() == SAME.keys() == BASES.keys()


@pytest.mark.parametrize("verb", KEYED)
def test_every_option_is_accounted_for(verb: str):
    found = set(options_of(verb))
    same = {**{name: why for name, why in PLACES.items() if name in found}, **SAME[verb]}
    keyed = {*KEYED[verb], "--dtype"}
    assert found - keyed - same.keys() == set(), "say in KEYED or SAME what these do to a key"
    assert (keyed | same.keys()) - found == set(), "these are options no more"
    assert not keyed & same.keys()
    assert all(same.values())


CASES = [(verb, *case) for verb, options in KEYED.items() for case in options.items()]


@pytest.mark.parametrize(
    ("verb", "option", "case"), CASES, ids=[f"{verb}{option}" for verb, option, _ in CASES]
)
def test_the_option_changes_the_key(
    tiny_folder: Callable[[str], Path], keys: Keys, verb: str, option: str, case: tuple[str, str]
):
    base, more = case
    assert more.split()[0] == option
    model = tiny_folder("llama-gqa")
    assert keys(verb, model, base) != keys(verb, model, base, more)


@pytest.mark.parametrize("verb", KEYED)
def test_the_model_and_its_precision_change_the_key(
    tiny_folder: Callable[[str], Path], keys: Keys, verb: str, monkeypatch: pytest.MonkeyPatch
):
    from excise.core import identity

    model = tiny_folder("llama-gqa")
    plain = keys(verb, model, "")
    assert plain == keys(verb, model, "")  # the same command, the same key
    assert plain[-1].keys() >= {"model", "dtype", "architecture", "versions"}
    changed = [keys(verb, tiny_folder("llama-mha"), ""), keys(verb, model, "", "--dtype bfloat16")]
    monkeypatch.setattr(identity, "versions", lambda: {"excise": "0"})
    for found in (*changed, keys(verb, model, "")):
        assert found != plain


def test_nothing_is_kept_of_whole_units(tiny_folder: Callable[[str], Path], tmp_path: Path):
    words = [
        "prune",
        str(tiny_folder("opt")),
        "--sparsity",
        "0.5",
        "--resume",
        "-o",
        tmp_path / "o",
    ]
    for more in (["--components", "neurons"], ["--relevance", tmp_path]):
        done = CliRunner().invoke(group, list(map(str, [*words, *more])))
        assert done.exit_code == 1
        assert "--resume is for recipes of weights" in done.stderr
