"""Where reference data comes from: one of four sources, by path, by name or handed over."""

import json
from pathlib import Path
from typing import Any

import pytest
from excise.core.data import Prompt, encode_texts
from excise.core.documents import builtin_text
from excise.core.errors import ExciseError
from excise.tasks.registry import task_prompts
from excise.tasks.sources import Source


PROMPTS = [
    Prompt("Mary gave the cat to", answer="John", wrong="Mary"),
    Prompt("John gave the cat to", answer="Mary", wrong="John"),
]


def refusal(**given: Any) -> str:
    with pytest.raises(ExciseError) as caught:
        Source.of(**given)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_task(tiny_tokenizer: Any):
    source = Source.of(task="ioi", samples=3, seed=5)
    assert source.prompts(tiny_tokenizer) == task_prompts("ioi", tiny_tokenizer, 3, 5)
    test = task_prompts("ioi", tiny_tokenizer, 4, 5, "test")
    assert source.prompts(tiny_tokenizer, "test", 4) == test
    assert len(source.samples(tiny_tokenizer, "logit-difference")) == 3
    assert source.provenance == {"source": "task ioi", "sample_seed": 5}
    assert source.default_target == "logit-difference"
    other = Source.of(task="ioi", samples=3, counterfactual="swapped").prompts(tiny_tokenizer)
    assert other == task_prompts("ioi", tiny_tokenizer, 3, 0, "train", "swapped")


def test_prompts_as_file_list_dictionaries_and_texts(tiny_tokenizer: Any, tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    rows = [{key: value for key, value in vars(p).items() if value} for p in PROMPTS]
    path.write_text("\n".join(map(json.dumps, rows)))
    for given in (path, str(path), PROMPTS, rows, iter(rows), (PROMPTS[0], rows[1])):
        assert Source.of(prompts=given).prompts(tiny_tokenizer) == PROMPTS
    texts = [prompt.clean for prompt in PROMPTS]
    found = Source.of(prompts=texts, samples=1)
    assert found.prompts(tiny_tokenizer) == [Prompt(texts[0])]
    assert found.provenance["source"] == "prompts given"
    assert str(Source.of(prompts=path)) == f"prompts {path}"


def test_texts_as_file_list_and_builtin(tiny_tokenizer: Any, tmp_path: Path):
    text = "the cat sat on the mat . " * 20
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": text}) + "\n")
    wanted = encode_texts(tiny_tokenizer, [text], 3, 8)
    for given in (tmp_path / "text.txt", str(tmp_path / "rows.jsonl"), [text]):
        source = Source.of(text=given, samples=3, length=8)
        assert source.samples(tiny_tokenizer, "next-tokens") == wanted
        assert all(sample.known_by for sample in source.samples(tiny_tokenizer, "next-tokens"))
    pages = Source.of(text="builtin").documents()
    assert all(page in builtin_text() for page in pages)
    assert sum(map(len, pages)) < 0.7 * len(builtin_text())  # the others are to measure on


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give one of `task`, `text`, `dataset`, `prompts`; got none"),
        ({"task": "ioi", "text": "x"}, "got `task` and `text`"),
        ({"task": "ioy"}, "did you mean 'ioi'"),
        ({"task": "ioi", "samples": 0}, "`samples` is 0: give at least 1"),
        ({"task": "ioi", "split": "held-out"}, "unknown split 'held-out'"),
        ({"prompts": ["a"], "counterfactual": "swapped"}, "`counterfactual` belongs to `task`"),
        ({"prompts": []}, "`prompts` is empty"),
        ({"prompts": 7}, "`prompts` is 7: give a path, or a list"),
        ({"prompts": {"clean": "a"}}, "give a path, or a list"),
        ({"prompts": [{"clean": "a", "anser": "b"}]}, "did you mean 'answer'"),
        ({"prompts": [PROMPTS[0], 3]}, "`prompts`, number 1: a row needs"),
        ({"prompts": "none.jsonl"}, "no file at none.jsonl"),
        ({"text": ["a", 3]}, "`text` holds 3: give texts"),
        ({"text": "."}, "no file at ."),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(given: dict[str, Any], said: str):
    assert said in refusal(**given)


def test_a_source_of_another_kind_is_refused(tiny_tokenizer: Any):
    with pytest.raises(ExciseError, match="has no prompts: give `task` or `prompts`"):
        Source.of(text=["a b"]).prompts(tiny_tokenizer)
    with pytest.raises(ExciseError, match="task ioi is no text: give `text` or `dataset`"):
        Source.of(task="ioi").documents()
