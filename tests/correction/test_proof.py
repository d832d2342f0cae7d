"""The report card: unseen data, the gate, the second judge, durability; and no text of a model."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError
from excise.core.generation import Decoding
from excise.core.identity import model_hash
from excise.core.loading import Loaded
from excise.core.texts import line_hashes, text_hash
from excise.correction import durability as durable
from excise.correction.card import card_json, card_markdown, cut_by_layer
from excise.correction.card_page import card_page, cut_map
from excise.correction.controls import Band, Controls
from excise.correction.data.likelihood import identity_likelihood
from excise.correction.data.material import GenerationSettings, divided, from_examples, from_prompts
from excise.correction.data.recipes import (
    PROMPTS,
    prompt_parts,
    repetition_parts,
    repetition_target,
    toxicity_target,
)
from excise.correction.dose import choose_dose
from excise.correction.proof import ReportCard, check_budgets, control_check, prove, rules_of
from excise.edits.edit import Edit
from excise.eval.perplexity import Perplexity
from excise.eval.policy import Rule
from excise.eval.repetition import PROMPTS as REPETITION
from excise.eval.scorers import Scorer
from excise.tasks.ioi import ioi_prompts


ODD = Scorer("odd", None, "test", lambda texts: [float(len(text) % 2) for text in texts])
both = pytest.mark.parametrize("kind", ["llama-gqa", "opt"])

LONG = Scorer("long", "l", "words", lambda texts: [min(1.0, len(t) / 90) for t in texts])
OTHER = Scorer("other", "o", "letters", lambda texts: [min(1.0, t.count("e") / 9) for t in texts])
TARGET = toxicity_target([LONG, OTHER], Decoding(0, 6))


@pytest.fixture(scope="module")
def card_of(tiny: Any, tiny_tokenizer: Any) -> Any:
    """Return `card_of(kind)`, of two neurons of a tiny model."""
    cards: dict[str, ReportCard] = {}

    def made(kind: str) -> ReportCard:
        if kind not in cards:
            loaded = Loaded(tiny(kind), tiny_tokenizer, kind)
            prompts = [p.clean for p in ioi_prompts(tiny_tokenizer, 40)]
            parts = prompt_parts(prompts, attribute=False)
            texts = divided([text_of(tiny_tokenizer, 90)], None)
            dose = choose_dose(
                loaded, lambda size, factor: Edit(neurons={(1, n): factor for n in range(size)}),
                TARGET, parts.selection, Perplexity(texts.selection, "window", 16, 8),
                budget=5.0, sizes=(1, 2), factors=(0.0,),
            )  # fmt: skip
            cards[kind] = prove(
                loaded, Edit(neurons={(1, 0): 0.0, (0, 3): 0.5}), TARGET, parts.test,
                Perplexity(texts.test, "window", 16, 10), [identity_likelihood(tiny_tokenizer)],
                rules_of(TARGET, {"perplexity": 0.5}, min_samples=5, min_windows=5), dose,
                seen=frozenset(map(text_hash, parts.selection)), controls=3,
                facts={"warnings": ["length: made up"]},
            )  # fmt: skip
        return cards[kind]

    return made


def text_of(tokenizer: Any, n: int, seed: int = 1) -> str:
    return "\n".join(p.clean for p in ioi_prompts(tokenizer, n, seed, "validation"))


@both
def test_the_card_says_what_was_measured(card_of: Any, kind: str):
    card = card_of(kind)
    before, after = (e["toxicity"].columns["mean"].mean() for e in (card.before, card.after))
    assert card.gain.value == pytest.approx(1 - after / before)
    found = json.loads(json.dumps(card_json(card), allow_nan=False))
    own = found["correction"]
    assert found["kind"] == "correction"
    assert own["gain"]["value"] == card.gain.value
    assert own["second_judge"] == "toxicity@other.mean_toxicity"
    second = [e["toxicity@other"].columns["mean"].mean() for e in (card.before, card.after)]
    assert own["second_gain"]["value"] == pytest.approx(1 - second[1] / second[0])
    assert own["controls"]["gain"]["n"] == 3
    assert own["cut_by_layer"] == {"neurons": [1, 1]}
    assert len(own["dose_response"]) == 2
    assert {"model", "toxicity", "perplexity", "gates", "comparisons"} <= set(found)
    checks = {c.name: c.status for c in card.report.gates[0].checks}
    assert checks["held_out"] == "pass"
    assert {"perplexity.max_increase", "perplexity.equivalence", "toxicity.min_decrease",
            "toxicity@other.min_decrease", "controls", "edited"} <= set(checks)  # fmt: skip
    assert card.evidence()["verdict"] == ("met" if card.passed else "not met")


@both
def test_weights_are_counted_by_matrix(card_of: Any, kind: str):
    card = card_of(kind)
    body, out = ("model", "mlp.down_proj") if kind == "llama-gqa" else ("model.decoder", "fc2")
    weights = {f"{body}.layers.1.{out}.weight": (torch.tensor([3, 9]), torch.zeros(2))}
    card = replace(card, edit=Edit(weights=weights))
    assert cut_by_layer(card) == {out: [0, 2]}
    assert f">{out}<" in card_page(card)
    assert out in card_markdown(card)


@both
def test_the_pages_are_whole_and_quote_no_model(card_of: Any, kind: str):
    card = card_of(kind)
    pages = card_page(card), card_markdown(card), json.dumps(card_json(card))
    written = {t for e in (card.before, card.after)
               for t in e["toxicity"].texts["most toxic completion"]}  # fmt: skip
    quoted = [t for t in written if len(t.split()) > 3]
    assert quoted
    for page in pages:
        assert not [text for text in quoted if text in page]
    assert any(text in card_page(card, show_text=True) for text in quoted)
    html = pages[0]
    HTMLParser().feed(html)
    drawn = ["<svg" + part.split("</svg>")[0] + "</svg>" for part in html.split("<svg")[1:]]
    assert len(drawn) >= 4  # two of the dose, the random edits, what was cut
    for svg in drawn:
        ET.fromstring(svg)
    for part in ("Random edits", "What was cut", "does not say", "length: made up"):
        assert part in html
        assert part in pages[1]


def test_texts_that_chose_the_edit_fail_the_gate(card_of: Any, tiny: Any, tiny_tokenizer: Any):
    card = card_of("opt")
    loaded = Loaded(tiny("opt"), tiny_tokenizer, "opt")
    prompts = [p.clean for p in ioi_prompts(tiny_tokenizer, 12)]
    text = Perplexity([text_of(tiny_tokenizer, 20)], "window", 16, 8)
    rules = rules_of(TARGET, {"perplexity": 0.5}, min_samples=5, min_windows=5)
    again = prove(loaded, card.edit, TARGET, prompts, text, [], rules, card.dose,
                  seen=frozenset([text_hash(prompts[3].upper())]), controls=0)  # fmt: skip
    checks = {c.name: c for c in again.report.gates[0].checks}
    assert checks["held_out"].status == "error"
    assert "1 of 12 of toxicity" in checks["held_out"].detail
    assert checks["controls"].status == "inconclusive"
    assert not again.passed
    none = prove(loaded, card.edit, TARGET, prompts, text, [], rules, card.dose,
                 seen=frozenset(), controls=0)  # fmt: skip
    checks = {c.name: c for c in none.report.gates[0].checks}
    assert checks["held_out"].status == "unknown"  # which is not unseen


def controls(edit: float, values: list[float]) -> Controls:
    band = Band("x", edit, tuple(values))
    return Controls(band, band)


def test_the_check_of_controls():
    low = [0.01 * i for i in range(20)]
    assert control_check(controls(0.5, low), 20).status == "pass"
    assert control_check(controls(0.185, low), 20).status == "fail"
    assert control_check(controls(0.19, low), 20).status == "fail"  # a tie
    assert control_check(controls(0.5, low[:5]), 5).status == "inconclusive"
    assert control_check(controls(0.0, low[:5]), 5).status == "fail"
    assert control_check(None, 0).status == "inconclusive"
    assert control_check(None, 20).status == "error"


@pytest.mark.parametrize(
    ("failed", "n", "status"),
    [(0, 19, "pass"), (1, 37, "fail"), (1, 38, "pass"), (41, 19, "fail")],
)
def test_controls_that_failed_count_as_larger(failed: int, n: int, status: str):
    """What silences the model cannot be measured, and left nothing of the behaviour."""
    found = Controls(Band("x", 0.1, (0.05,) * n), Band("p", 0.0, (0.0,) * n), failed)
    assert found.p == (1 + failed) / (1 + failed + n)
    check = control_check(found, failed + n)
    assert check.status == status
    assert f"{failed + n} random edits" in check.detail
    told = f"{failed} of them could not be measured and count as larger"
    assert (told in check.detail) == (failed > 0)


def test_rules_and_budgets():
    budgets = check_budgets({"ioi": 0.01, "identity": 0.05, "repetition": 0.1}, ["ioi"])
    assert budgets == {"perplexity": 0.01, "ioi": 0.01, "identity": 0.05, "repetition": 0.1}
    budgets["perplexity"] = 0.02
    rules = {str(rule): rule for rule in rules_of(TARGET, budgets, 0.3)}
    assert set(rules) == {
        "perplexity.max_increase 2 % at 95 %", "perplexity.equivalence 2 % at 95 %",
        "held_out.required 0 at 95 %", "toxicity.min_decrease 30 % at 95 %",
        "toxicity.min_decrease 0 % at 95 %", "tasks.ioi.max_decrease 0.01 at 95 %",
        "identity.max_increase 5 % at 95 %", "repetition.max_decrease 10 % at 95 %",
    }  # fmt: skip
    assert rules["toxicity.min_decrease 0 % at 95 %"].scorer == "other"
    (rule,) = [r for r in rules_of(repetition_target(), {"perplexity": 0.0}) if "rep" in r.section
               and r.statistic == "unique_token_ratio"]  # fmt: skip
    assert rule == Rule("repetition", "min_increase", 0.0, True, 0.95, 30, "unique_token_ratio")
    wrong: list[Any] = [("perplexty", 0.01), ("perplexity", "x"), ("perplexity", -0.01),
                        ("tasks", 1.0), ("perplexity", float("nan"))]  # fmt: skip
    for name, share in wrong:
        with pytest.raises(ExciseError, match="budget") as error:
            check_budgets({name: share}, ["ioi"])
        assert "\n" not in str(error.value)


def test_no_text_is_in_two_parts(tiny_tokenizer: Any, tmp_path: Path, tiny: Any):
    parts = repetition_parts()
    sets = [set(map(text_hash, part)) for part in vars(parts).values()]
    assert not sets[0] & sets[1]
    assert not (sets[0] | sets[1]) & sets[2]
    assert len(PROMPTS) == len(set(map(text_hash, PROMPTS)))
    assert parts.test == REPETITION
    text = text_of(tiny_tokenizer, 60) + "\n" + text_of(tiny_tokenizer, 30)  # lines come again
    for general in (None, [text_of(tiny_tokenizer, 10)]):
        texts = divided([text], general)
        lines = [{h for part in kind for h in line_hashes(part)} for kind in vars(texts).values()]
        assert lines[0]
        assert lines[1]
        assert lines[2]
        assert not (lines[0] | lines[1]) & lines[2]
    with pytest.raises(ExciseError, match=r"\d+ select; of the other \d+ 0 are new"):
        divided([text], [text])

    loaded = Loaded(tiny("opt"), tiny_tokenizer, "opt")
    bad = tmp_path / "bad.txt"
    bad.write_text("\n".join(p.clean for p in ioi_prompts(tiny_tokenizer, 60)))
    general = tmp_path / "general.txt"
    general.write_text(text_of(tiny_tokenizer, 40, 7))
    texts = divided([text], None)
    judged: Any = lambda name: replace(TARGET, name=name)  # noqa: E731
    for make in (judged, None):
        found = from_examples(loaded, bad, general, texts, make, None, 50, name="x")
        metric = found.target.metric(found.parts.test)
        measured = set(metric.plan(loaded).units)
        assert len(measured) == len(found.parts.test) >= 10
        assert not measured & found.seen
        used = {tuple(s.input_ids) for s in found.behaviour().undesired}
        assert 10 <= len(used) < 40
        chosen = set(found.target.metric(found.parts.selection).plan(loaded).units)
        assert chosen <= found.seen
        assert not chosen & measured
    prompts = [p.clean for p in ioi_prompts(tiny_tokenizer, 30, 9)]
    found = from_examples(loaded, bad, general, texts, judged, prompts, 50)
    assert len(found.behaviour().undesired) == 50
    assert not set(map(text_hash, found.parts.test)) & found.seen
    assert set(map(text_hash, found.parts.selection)) <= found.seen
    with pytest.raises(ExciseError, match="give `judges`"):
        from_examples(loaded, bad, general, texts, None, prompts, 50)
    with pytest.raises(ExciseError, match="0 of the prompts fall to the attribution"):
        from_prompts(
            loaded, TARGET, prompt_parts(prompts, False), GenerationSettings(LONG, 4), texts
        )
    own = GenerationSettings(ODD, 4, completions=6)
    with pytest.raises(ExciseError, match="holds none"):
        from_examples(loaded, bad, general, texts, judged, prompts, 50, own)
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{line}\t{line} ?\n" for line in bad.read_text().split("\n")[:30]))
    found = from_examples(loaded, pairs, None, texts, judged, prompts, 20, own)
    joined = found.behaviour()
    assert joined.paired
    assert joined == found.behaviour()
    ids = {tuple(tiny_tokenizer(prompt)["input_ids"]) for prompt in found.parts.attribution}
    behind = joined.undesired[20:]
    assert behind
    assert {s.input_ids[: len(s.input_ids) - s.continuation] for s in behind} <= ids
    assert set(map(text_hash, found.parts.attribution)) <= found.seen
    assert not set(found.parts.attribution) & {*found.parts.selection, *found.parts.test}


@both
def test_what_is_left_in_other_forms(
    tiny: Any, tiny_tokenizer: Any, kind: str, monkeypatch: pytest.MonkeyPatch
):
    loaded = Loaded(tiny(kind), tiny_tokenizer, kind)
    before = model_hash(loaded.model)
    prompts = [p.clean for p in ioi_prompts(tiny_tokenizer, 12)]
    text = Perplexity([text_of(tiny_tokenizer, 20)], "window", 16, 8)
    benign = list(from_ids(tiny_tokenizer, text_of(tiny_tokenizer, 8, 5)))
    metrics = [TARGET.metric(prompts), text]

    def broken(*_: Any) -> Loaded:
        raise RuntimeError("no kernel\nand more")

    monkeypatch.setitem(durable.FORMS, "int8", broken)
    monkeypatch.setattr(durable, "STEPS", 3)
    edit = Edit(neurons={(1, n): 0.0 for n in range(6)})
    rows = durable.durability(loaded, edit, metrics, TARGET.judge, benign,
                              ["bfloat16", "fine-tuned", "int8"])  # fmt: skip
    assert model_hash(loaded.model) == before
    assert [row.form for row in rows] == ["bfloat16", "fine-tuned", "int8"]
    assert rows[0].gain
    assert rows[1].gain
    assert rows[1].cost
    assert rows[2].gain is None
    assert rows[2].to_json() == {"form": "int8", "note": "no kernel", "gain": None,
                                 "gain_ci": None, "cost": None, "cost_ci": None}  # fmt: skip
    with pytest.raises(ExciseError, match="unknown form 'int3'"):
        durable.durability(loaded, edit, metrics, TARGET.judge, benign, ["int3"])


def test_fine_tuning_is_plain_adamw(tiny: Any, tiny_tokenizer: Any):
    """Counted again with a loop of its own, sample by sample."""
    loaded = Loaded(tiny("llama-gqa"), tiny_tokenizer, "x")
    benign = from_ids(tiny_tokenizer, text_of(tiny_tokenizer, 2, 5))[:1]
    tuned = durable._finetuned(loaded, benign)
    assert not tuned.model.training
    model = tiny("llama-gqa")
    optimiser = torch.optim.AdamW(model.parameters(), lr=durable.RATE)
    ids = torch.tensor([benign[0].input_ids])
    for _ in range(durable.STEPS):
        model(ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    for mine, theirs in zip(tuned.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def from_ids(tokenizer: Any, text: str) -> list[Any]:
    from excise.core.data import encode_texts

    return encode_texts(tokenizer, [text], 4, 24)


def test_the_picture_adds_up():
    units = {(0, 0): 0.0, (0, 5): 0.5, (1, 4): -0.5}
    assert cut_map(units, 2, 7, 3) == [[1.0, 0.5, 0.0], [0.0, 1.5, 0.0]]


def test_inputs_tell_apart_what_the_attribution_is_made_with(
    tiny: Any, tiny_tokenizer: Any, tmp_path: Path
):
    loaded = Loaded(tiny("opt"), tiny_tokenizer, "opt")
    rows = [(p.clean, p.clean + " .") for p in ioi_prompts(tiny_tokenizer, 40)]
    prompts = [p.clean for p in ioi_prompts(tiny_tokenizer, 30, 9)]
    texts = divided([text_of(tiny_tokenizer, 60)], None)
    other = divided([text_of(tiny_tokenizer, 60, 8)], None)
    judged: Any = lambda name: replace(TARGET, name=name)  # noqa: E731
    found = []
    for n, (order, text) in enumerate([(1, texts), (-1, texts), (1, other), (1, texts)]):
        file = tmp_path / f"{n}.tsv"
        file.write_text("".join("\t".join(row[::order]) + "\n" for row in rows))
        found.append(from_examples(loaded, file, None, text, judged, prompts, 50).inputs)
    assert found[0] == found[3]
    assert len(set(found)) == 3  # swapped sides and another general text are another run
