"""What is made from Python says which texts it was made with, and the gate believes it alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from excise.circuits.find import search_circuit
from excise.circuits.pairs import encode_pairs
from excise.circuits.search import Parts, Search
from excise.core.data import Sample, batches, encode_continuations, encode_prompts, encode_texts
from excise.core.errors import ExciseError
from excise.core.export import save_model
from excise.core.families import ModelView
from excise.core.loading import Loaded, load_model
from excise.core.provenance import NOT_TOLD, Seen, seen_in
from excise.core.texts import line_hashes, text_hash
from excise.eval.choice import TaskAccuracy
from excise.eval.gate import check_gate
from excise.eval.policy import parse_policy
from excise.eval.run import evaluate
from excise.lrp.run import score_samples
from excise.prune.mask import Mask, select
from excise.prune.recipe import get_recipe
from excise.prune.run import prune_weights
from excise.prune.structured.shrink import select_uniform, shrink
from excise.prune.structured.units import unit_scores
from excise.tasks.ioi import ioi_prompts


Folder = Callable[[str], Path]
RULES = parse_policy({"min_samples": 2, "held_out": "required", "tasks": {"ioi": {"min": 0}}})


def held_out(model: Path, prompts: Any) -> tuple[str, str]:
    """Measure a folder on a task, and say what the gate makes of it."""
    found = evaluate(load_model(str(model)), [TaskAccuracy("ioi", lambda _: prompts)])
    (check,) = (c for c in check_gate(RULES, found).checks if c.name == "held_out")
    return check.status, check.detail


def test_samples_know_their_texts(tiny_tokenizer: Any):
    prompts = ioi_prompts(tiny_tokenizer, 3)
    hashes = [text_hash(prompt.clean) for prompt in prompts]
    for encode in (encode_prompts, encode_continuations):
        assert [s.known_by for s in encode(tiny_tokenizer, prompts)] == [(h,) for h in hashes]
    lines = [prompt.clean for prompt in ioi_prompts(tiny_tokenizer, 40)]
    whole, other = "\n".join(lines[:20]), "\n".join(lines[20:])
    samples = encode_texts(tiny_tokenizer, [whole, other], 3, 24)
    for sample in samples:
        assert 2 <= len(sample.known_by) <= 4
        assert set(sample.known_by) <= set(line_hashes(f"{whole}\n{other}"))
        known = " ".join(line for line in lines if text_hash(line) in sample.known_by)
        assert (
            " ".join(tiny_tokenizer.decode(sample.input_ids[2:]).split()).replace(" ,", ",")
            in known
        )
    assert samples[0] == Sample(samples[0].input_ids)  # what it is, not where it comes from


def test_relevance_says_it(tiny: Any, tiny_tokenizer: Any, tmp_path: Path):
    model, samples = tiny("opt"), encode_prompts(tiny_tokenizer, ioi_prompts(tiny_tokenizer, 4))
    found = score_samples(model, samples, "logit")
    assert found.seen == Seen.by(samples)
    assert len(found.config["prompt_hashes"]) == 4
    found.save_pretrained(tmp_path / "relevance")
    assert seen_in(tmp_path / "relevance") == found.seen
    bare = [Sample(sample.input_ids, sample.answer) for sample in samples]
    for unknown in (bare, [*samples[:2], *bare[2:]], batches(samples, 2)):
        assert score_samples(model, unknown, "logit").seen.unknown
    assert score_samples(model, bare, "logit").config["prompt_hashes"] == "unknown"
    assert score_samples(model, [*samples[:2], *bare[2:]]).config["prompt_hashes"][-1] == "unknown"
    mask = select(found, "heads", 0.5)
    mask.save_pretrained(tmp_path / "mask")
    assert Mask.from_pretrained(tmp_path / "mask").seen == mask.seen == found.seen


def test_circuits_say_it(tiny: Any, tiny_tokenizer: Any):
    prompts = [ioi_prompts(tiny_tokenizer, 4, split=s) for s in ("train", "validation", "test")]
    parts = Parts(*(encode_pairs(tiny_tokenizer, part) for part in prompts))
    found = search_circuit(tiny("opt"), parts, Search(size=3, controls=0), allow_failing=True)
    chosen = {text_hash(prompt.clean) for prompt in prompts[0] + prompts[1]}
    assert set(found.config["prompt_hashes"]) == chosen  # those of the test are still to be used


@pytest.mark.parametrize("way", ["weights", "units", "relevance"])
def test_the_gate_knows_what_was_pruned_from_python(
    way: str, tiny_folder: Folder, tiny_tokenizer: Any, tmp_path: Path
):
    """The audit's H3 for everything but edits: no command writes the hashes, the library does."""
    used, fresh = (ioi_prompts(tiny_tokenizer, 6, seed) for seed in (0, 1))
    samples = encode_prompts(tiny_tokenizer, used)
    bare = [Sample(sample.input_ids, sample.answer, sample.wrong) for sample in samples]
    for name, given in (("told", samples), ("bare", bare)):
        loaded = load_model(str(tiny_folder("opt")))
        if way == "weights":
            mask = prune_weights(loaded.model, given, get_recipe("wanda", sparsity=0.3)).mask
        elif way == "units":
            scores, view = unit_scores(loaded.model, given, "neurons", "wanda"), loaded.model
            mask = select_uniform(scores, "neurons", 0.5, ModelView.of(view), seen=Seen.by(given))
            shrink(loaded.model, mask)
        else:
            mask = select(score_samples(loaded.model, given, "logit"), "heads", 0.25)
            mask.apply_(loaded.model)
        save_model(loaded, tmp_path / name, {"verb": "prune"}, parts={"mask": mask})
    assert held_out(tmp_path / "told", used)[0] == "error"
    assert held_out(tmp_path / "told", fresh)[0] == "pass"
    assert held_out(tmp_path / "bare", fresh)[0] == "unknown"
    assert held_out(tiny_folder("opt"), fresh) == ("unknown", NOT_TOLD.unknown)

    again = load_model(str(tmp_path / "told"))  # what was known before goes on
    none = Mask(
        "heads", {"heads": select(score_samples(again.model, bare), "heads", 0.2).keep["heads"]}
    )
    none = replace(none, seen=Seen())
    save_model(again, tmp_path / "twice", {"verb": "prune"}, parts={"mask": none})
    assert held_out(tmp_path / "twice", used)[0] == "error"
    save_model(again, tmp_path / "alone", {"verb": "mine"})
    assert held_out(tmp_path / "alone", fresh)[0] == "unknown"
    plain = Loaded(load_model(str(tiny_folder("opt"))).model, tiny_tokenizer, "")
    save_model(plain, tmp_path / "plain", {}, parts={"mask": none})
    assert held_out(tmp_path / "plain", used) == ("pass", "no text chose the edit")


@pytest.mark.parametrize("value", [7, {"a": 1}, [1], ["zz"], ["0123456789abcdefABC"], True])
def test_what_is_no_list_of_hashes_is_refused(value: Any, tmp_path: Path):
    (tmp_path / "excise.json").write_text(json.dumps({"prompt_hashes": value}))
    with pytest.raises(ExciseError, match="prompt_hashes cannot be read"):
        seen_in(tmp_path)


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path):
    for content in ("{", "[]", "[" * 100_000, "\xff"):
        (tmp_path / "excise.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(ExciseError, match=str(tmp_path)) as error:
            seen_in(tmp_path)
        assert "\n" not in str(error.value)
