"""Every verb with arguments of any kind: a result or one line, and nothing else touched."""

import random
from pathlib import Path
from typing import Any

import click
from excise.cli.main import VERBS, group
from hypothesis import given
from hypothesis import strategies as st


NUMBERS = ("0", "1", "2", "-1", "3", "0.5", "1.5", "1e-9", "nan", "inf", "-inf", "", "²", "\u0663",
           "1_0", "0x1", "9" * 50, "9" * 5000, "1e999", " 2 ", "two", "-0", "\x1b[2J")  # fmt: skip
NAMES = ("", "x", "ioi", "lrp", "lpr", "heads", "weights", "heads,tails", "signed", "abs", "*", "[",
         "2:4", "0:0", "4:2", "\u0662:\u0664", "block:1x0", "cpu", "meta", "cuda:9", "auto",
         "float32", "float12", "builtin", "self", "words:x", "hf:x", "python:x", "perplexity=1%",
         "perplexity=\u0661", "10,x", "0.3,nan", "a" * 300, "a\0b", "bad\udcff", "\x1b[2J", "../..",
         "'\"<img src=x>|", "\u202ex")  # fmt: skip
FILES = ("prompts.jsonl", "text.txt", "pairs.tsv", "pairs.jsonl", "policy.yaml", "scores.json",
         "relevance", "nodes", "edges", "edit", "edited", "model", "report", "missing", ".",
         "text.txt/x", "model/config.json")  # fmt: skip
ODD = ("", "a" * 300, "bad\udcff", "/dev/null", "/dev/full", "/proc/self/mem", "\x1b[2J")
COSTLY = ("demo", "correct", "circuit")
"""Verbs whose good calls take long: theirs are dry runs, or of a model that is none."""


def word(site: Any, param: click.Parameter, draw: random.Random) -> str:
    """Return a value for an option or argument, fit or not."""
    kind = param.type.name.split()[0]
    if draw.random() < 0.1:
        return draw.choice((*NUMBERS, *NAMES, *ODD))
    if kind in ("integer", "float"):
        return draw.choice(NUMBERS)
    if kind in ("path", "file", "directory") or param.name in (
        "model", "models", "edit", "edits", "folder", "a", "b", "perplexity", "toxicity",
    ):  # fmt: skip
        name = draw.choice((*FILES, *ODD[:-1])) if draw.random() < 0.3 else draw.choice(FILES)
        return name if name in ODD else str(site.folder / name)
    return draw.choice(NAMES)


def call(site: Any, draw: random.Random) -> tuple[list[str], list[Path]]:
    """Return a command line, and what it may write."""
    verb = draw.choice(list(VERBS))
    command = group.get_command(click.Context(group), verb)
    assert command
    words, outputs = [verb], []
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    options = [p for p in command.params if isinstance(p, click.Option)]
    for argument in arguments:
        wanted = str(site.folder / "model") if draw.random() < 0.6 else word(site, argument, draw)
        if verb in COSTLY and draw.random() < 0.9:
            wanted = str(site.folder / "relevance")  # no model
        if draw.random() < 0.95:
            words.append(wanted)
    given = draw.sample(options, min(len(options), draw.choice((0, 1, 2, 3, 5))))
    given += [o for o in options if o.name in ("dry_run", "no_cache") and o not in given]
    outs = [o for o in options if o.name in ("output", "html", "svg", "dot", "eap_ig")]
    given += [o for o in outs if o.name == "output" and o not in given and draw.random() < 0.7]
    if verb == "demo":
        words += ["--model", str(site.folder / "relevance")]
        given = [o for o in given if o.name != "model"]
    for option in given:
        words.append(max(option.opts, key=len))
        if option.is_flag:
            continue
        value = word(site, option, draw)
        if option in outs and draw.random() < 0.6:
            value = str(site.work / "out")
            outputs.append(site.work / "out")
        words.append(value)
    return words, outputs


def test_a_bad_call(site: Any, many: Any, monkeypatch: Any):
    monkeypatch.chdir(site.work)

    @many(0.3)
    @given(st.randoms(use_true_random=True))
    def check(draw: random.Random) -> None:
        site.clear()
        words, outputs = call(site, draw)
        site.call(*words, outputs=tuple(outputs))

    check()
