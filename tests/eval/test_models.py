"""`evaluate_models`: what `excise eval` does, from Python."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from excise import ExciseError, Loaded, evaluate_models
from excise.core.provenance import Seen
from excise.core.texts import line_hashes


TEXT = ["the cat sat on the mat and the dog sat on the cat " * 20]
POLICY = {"held_out": "required", "min_samples": 2, "perplexity": {"max_increase": "90 %"}}


def measured(models: Any, tokenizer: Any = None, **options: Any) -> Any:
    return evaluate_models(models, tokenizer, perplexity=TEXT, window=16, cache=False, **options)


def test_a_folder_and_a_live_model_give_the_same(
    tiny_folder: Callable[[str], Path],
    tiny: Callable[..., Any],
    tiny_tokenizer: Any,
    tmp_path: Path,
):
    live = tiny("opt")
    report = measured({"base": tiny_folder("opt"), "mine": live}, tiny_tokenizer)
    values = [one["perplexity"].headline.value for one in report.evaluations]
    assert [one.model for one in report.evaluations] == ["base", "mine"]
    assert values[0] == values[1]
    assert report.passed
    assert report.warnings == ["mine has the weights of base"]
    assert "mine against base" in str(report)
    assert report._repr_html_().startswith("<iframe")
    report.save_pretrained(tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"config.json", "report.json", "report.md", "report.html", "units"}


def test_the_gate_knows_which_texts_chose_a_live_edit(
    tiny: Callable[..., Any], tiny_tokenizer: Any
):
    def held_out(model: Any) -> str:
        report = measured([Loaded(tiny("opt"), tiny_tokenizer, "base"), model], tiny_tokenizer,
                          gate=POLICY)  # fmt: skip
        return next(check.status for check in report.gates[0].checks if check.name == "held_out")

    def pruned(seen: Seen) -> Any:
        return SimpleNamespace(model=tiny("opt", 1), tokenizer=tiny_tokenizer, seen=seen)

    assert held_out(tiny("opt", 1)) == "unknown"
    assert held_out(pruned(Seen(frozenset(line_hashes("some other line of text"))))) == "pass"
    assert held_out(pruned(Seen(frozenset(line_hashes(TEXT[0]))))) == "error"


def test_nothing_to_measure_and_no_model(tiny: Callable[..., Any], tiny_tokenizer: Any):
    with pytest.raises(ExciseError, match="nothing to measure"):
        evaluate_models(tiny("opt"), tiny_tokenizer)
    with pytest.raises(ExciseError, match="without a tokenizer"):
        measured(tiny("opt"))
    with pytest.raises(ExciseError, match="`models` is empty"):
        measured([])
    assert measured(tiny("opt"), tiny_tokenizer, dry_run=True).peak > 0
