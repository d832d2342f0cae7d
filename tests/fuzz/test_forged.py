"""Artefacts and files with anything in them: a result or one line, and nothing else touched."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from excise.circuits.exchange import read_eap_ig
from excise.circuits.graph import Graph
from excise.core.errors import ExciseError
from excise.correction.data.behaviour import read_behaviour
from excise.eval.policy import read_policy
from excise.prune.mask import Mask
from hypothesis import given
from hypothesis import strategies as st


ARTEFACTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "relevance": (
        ("show", "{it}"),
        ("show", "{it}", "--html", "{out}", "--json"),
        ("show", "{relevance}", "--against", "{it}"),
        ("prune", "{model}", "--relevance", "{it}", "--components", "heads", "--zero",
         "--sparsity", "0.3", "--dry-run"),
        ("eval", "{model}", "--attribution", "{it}"),
    ),
    "nodes": (
        ("show", "{it}"), ("show", "{it}", "--html", "{out}"), ("show", "{it}", "--json"),
        ("show", "{it}", "--eap-ig", "{out}"), ("diff", "{nodes}", "{it}"),
    ),
    "edges": (
        ("show", "{it}"), ("show", "{it}", "--html", "{out}"), ("show", "{it}", "--dot", "{out}"),
        ("show", "{it}", "--eap-ig", "{out}"), ("diff", "{it}", "{edges}"),
    ),
    "neurons": (("show", "{it}"), ("show", "{it}", "--svg", "{out}"), ("diff", "{it}", "{it}")),
    "edit": (
        ("show", "{it}"), ("show", "{it}", "--json"), ("diff", "{edit}", "{it}"),
        ("verify", "{edited}", "{it}"), ("apply", "{model}", "{it}", "-o", "{out}"),
    ),
    "edited": (("verify", "{it}"), ("revert", "{it}", "-o", "{out}"), ("verify", "{it}", "{edit}")),
    "model": (
        ("score", "{it}", "--prompts", "{prompts}", "--dry-run"),
        ("apply", "{it}", "{edit}", "-o", "{out}"),
        ("verify", "{it}", "{edit}"),
    ),
    "report": (("eval", "{model}", "--attribution", "{it}"), ("show", "{it}")),
    "pruned": (("eval", "{model}", "--attribution", "{it}"),),
}  # fmt: skip
"""What reads each kind."""


SHARES = {"relevance": 0.14, "nodes": 0.12, "edges": 0.12, "neurons": 0.02, "edit": 0.12,
          "edited": 0.04, "model": 0.06, "report": 0.02, "pruned": 0.02}  # fmt: skip


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_a_forged_artefact(site: Any, many: Any, kind: str):
    @many(SHARES[kind])
    @given(st.randoms(use_true_random=True))
    def check(draw: random.Random) -> None:
        it, out = site.spoiled(kind, draw), site.work / "out"
        names = {name: site[name] for name in ARTEFACTS} | {"prompts": site["prompts.jsonl"]}
        words = draw.choice(ARTEFACTS[kind])
        filled = [word.format(**names, it=it, out=out) for word in words]
        site.call(*filled, outputs=(out,))

    check()


FILES: dict[str, tuple[Callable[..., Any], ...]] = {
    "prompts.jsonl": (
        lambda site, path: site.call("score", site["model"], "--prompts", path, "--dry-run"),
    ),
    "pairs.jsonl": (lambda site, path: read_behaviour(site.tokenizer, path),),
    "pairs.tsv": (lambda site, path: read_behaviour(site.tokenizer, path),),
    "policy.yaml": (lambda _site, path: read_policy(path),),
    "scores.json": (lambda _site, path: read_eap_ig(path, Graph(2, 4, 2)),),
    "pruned/mask": (lambda _site, path: Mask.from_pretrained(path),),
}


@pytest.mark.parametrize("name", FILES)
def test_a_forged_file(site: Any, many: Any, name: str):
    from transformers import AutoTokenizer

    site.tokenizer = AutoTokenizer.from_pretrained(site["model"])

    @many({"prompts.jsonl": 0.02, "scores.json": 0.08}.get(name, 0.05))
    @given(st.randoms(use_true_random=True))
    def check(draw: random.Random) -> None:
        it = site.spoiled(name, draw)
        for read in FILES[name]:
            said = "read"
            try:
                read(site, it)
            except ExciseError as error:
                said = str(error)
            assert 0 < len(said) < 3000
            said.encode()

    check()
