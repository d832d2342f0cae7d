"""The door: from a model and the name of a source to a relevance, as the command line makes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from excise import ExciseError, Relevance, score
from excise.cli.main import group
from excise.core.memory import Forecast


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_python_and_the_command_line_make_the_same_folder(
    tiny_folder: Callable[[str], Path], tmp_path: Path, kind: str
):
    source = ["--task", "ioi", "--samples", "6", "--seed", "3"]
    done = CliRunner().invoke(
        group, ["score", str(tiny_folder(kind)), *source, "-o", str(tmp_path / "cli")]
    )
    assert done.exit_code == 0, done.output
    found = score(tiny_folder(kind), task="ioi", samples=6, seed=3, progress=True)
    found.save_pretrained(tmp_path / "python")
    configs = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("cli", "python")]
    for config in configs:
        config.pop("created", None)
    assert configs[0] == configs[1]
    assert configs[0]["source"] == "task ioi"
    assert len(configs[0]["prompt_hashes"]) == 6
    one, two = (Relevance.from_pretrained(tmp_path / name) for name in ("cli", "python"))
    assert torch.equal(one.get("heads"), two.get("heads"))


def test_a_live_model_and_prompts_at_hand(tiny_opt: Any, tiny_tokenizer: Any):
    prompts = [{"clean": "Mary gave the cat to", "answer": "John"}]
    found = score(tiny_opt, tiny_tokenizer, prompts=prompts, batch_size=1)
    assert (found.config["target"], found.config["source"]) == ("logit", "prompts given")
    assert len(found.config["prompt_hashes"]) == 1
    texts = score(tiny_opt, tiny_tokenizer, text=["the cat sat on the mat . " * 9], length=8)
    assert texts.config["target"] == "next-tokens"


def test_a_forecast_instead_of_a_run(tiny_opt: Any, tiny_tokenizer: Any):
    told: list[Forecast] = []
    found = score(
        tiny_opt, tiny_tokenizer, task="ioi", samples=4, batch_size=2, dry_run=True,
        tell=told.append,
    )  # fmt: skip
    assert told == [found]
    assert found.counts == {"samples": 4, "samples per pass": 2}
    assert str(found).startswith("4 samples, 2 samples per pass; peak memory about ")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give one of `task`"),
        ({"task": "ioi", "method": "lpr"}, "unknown method 'lpr': did you mean 'lrp'"),
        ({"task": "ioi", "target": "logits"}, "unknown target 'logits'"),
        ({"task": "ioi", "batch_size": 0}, "`batch_size` is 0: give a whole number from 1"),
        ({"task": "ioi", "batch_size": "many"}, "`batch_size` is 'many'"),
        ({"task": "ioi", "aggregate": "sum"}, "unknown aggregate 'sum'"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(given: dict[str, Any], said: str):
    with pytest.raises(ExciseError) as caught:
        score("no/such-model", **given)
    assert said in str(caught.value)
