"""The planted test bed: what is planted where, and grades against slow versions of themselves."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError
from excise.correction.data.behaviour import check_sets
from excise.correction.ranking.contrast import contrast
from excise.correction.testbed.language import BAD, CUES, MARKERS, Language
from excise.correction.testbed.planted import (
    PLANTED,
    PlantedBehaviour,
    grade,
    outcome,
    planted_behaviour,
)
from excise.correction.testbed.training import unit_masks
from excise.edits.edit import Edit


@cache
def planted() -> PlantedBehaviour:
    return planted_behaviour("opt", 0)


def test_only_weights_of_planted_units_differ():
    found = planted()
    inputs, outputs = unit_masks(found.model, found.truth, "neurons")
    clean = dict(found.clean.named_parameters())
    changed = 0
    for name, parameter in found.model.named_parameters():
        differs = parameter != clean[name]
        mask = inputs.get(name, outputs.get(name, torch.zeros_like(differs)))
        assert not bool((differs & ~mask).any()), name
        changed += int(differs.sum())
    assert changed > 0.9 * sum(int(mask.sum()) for mask in (*inputs.values(), *outputs.values()))


def test_masks_are_the_rows_and_columns_of_units(tiny_llama: Any):
    inputs, outputs = unit_masks(tiny_llama, frozenset({(1, 3), (1, 5)}), "neurons")
    assert all(".1." in name for name in (*inputs, *outputs))
    assert {name.split(".")[-2] for name in inputs} == {"gate_proj", "up_proj"}
    for mask in inputs.values():
        assert mask.nonzero()[:, 0].unique().tolist() == [3, 5]
    ((name, mask),) = outputs.items()
    assert "down_proj" in name
    assert mask.nonzero()[:, 1].unique().tolist() == [3, 5]
    inputs, outputs = unit_masks(tiny_llama, frozenset({(0, 1)}), "heads")
    assert {name.split(".")[-2] for name in (*inputs, *outputs)} >= {"q_proj", "o_proj"}


def test_the_behaviour_is_in_the_planted_units_alone():
    found = planted()
    assert found.rate(found.clean) < 0.05
    assert found.rate(found.model) >= PLANTED
    assert found.perplexity(found.model) < 1.03 * found.perplexity(found.clean)
    edit = Edit(neurons=dict.fromkeys(found.truth, 0.0))
    done = outcome(edit, found)
    assert done.removed > 0.9
    ratio = found.perplexity(found.clean) / found.perplexity(found.model)
    assert done.rise == pytest.approx(ratio - 1, rel=1e-4)
    assert done.equivalent(0.05)
    assert not done.equivalent(abs(done.rise))
    with edit.applied(found.model):
        torch.testing.assert_close(found.losses(found.model), found.losses(found.clean))


def test_rate_and_perplexity_are_those_of_samples_alone():
    found = planted()
    hits, losses = 0, []
    for sample in found.held_out:
        logits = found.model(input_ids=torch.tensor([sample.input_ids[:-1]])).logits
        hits += int(logits[0, -1].argmax()) == BAD
    for sample in found.text[:8]:
        said = found.model(input_ids=torch.tensor([sample.input_ids])).logits[0].log_softmax(-1)
        pairs = zip(said, sample.input_ids[1:], strict=False)
        losses.append(-sum(row[token].item() for row, token in pairs) / (len(said) - 1))
    assert found.rate(found.model) == pytest.approx(hits / len(found.held_out))
    assert found.losses(found.model)[:8].tolist() == pytest.approx(losses, rel=1e-4)
    whole = found.losses(found.model).mean().item()
    assert found.perplexity(found.model) == pytest.approx(math.exp(whole))


def test_ours_finds_what_was_planted_and_chance_does_not():
    found = planted()
    ours = grade(contrast(found.model, found.behaviour), found)
    chance = grade(contrast(found.model, found.behaviour, "random"), found)
    assert ours.recall == ours.precision >= 0.8
    assert ours.outcome.removed >= 0.9
    assert ours.outcome.rise <= 0.01
    assert ours.auroc > 0.99
    assert chance.recall < 0.5
    assert chance.outcome.removed < 0.5


def test_recall_counts_hits():
    found = planted()
    scored = contrast(found.model, found.behaviour, "magnitude")
    hits = len(set(scored.top(len(found.truth))) & found.truth) / len(found.truth)
    assert grade(scored, found).recall == hits


def test_recall_where_eight_of_ten_are_right():
    found = planted()
    scored = contrast(found.model, found.behaviour, "magnitude", protect=0, rank_by="scores")
    scores = torch.zeros(scored.scores.shape)
    for n, unit in enumerate(sorted(found.truth)):
        scores[unit] = 100.0 - n
    one, two, three = [(0, n) for n in range(24) if (0, n) not in found.truth][:3]
    scores[one], scores[two] = 98.5, 97.5  # third and fifth, where at k = 10 all are found
    graded = grade(replace(scored, scores=scores), found)
    assert (graded.recall, graded.recall_at_80) == (6 / 8, 1.0)
    scores[three] = 98.4
    assert grade(replace(scored, scores=scores), found).recall_at_80 == 2 / 8


def test_samples_are_matched_and_held_out_triggers_are_new():
    found = planted()
    sets = found.behaviour
    for bad, right in zip(sets.undesired, sets.general, strict=True):
        assert bad.input_ids[-1] == BAD != right.input_ids[-1]
        assert len(bad.input_ids) == len(right.input_ids)
        assert bad.input_ids[:-3] == right.input_ids[:-3]
        assert bad.input_ids[-3] in CUES
        assert right.input_ids[-3] in MARKERS
    assert not {s.input_ids for s in found.held_out} & {s.input_ids for s in sets.undesired}
    for sample in (*sets.kept, *found.text):
        assert not set(sample.input_ids) & set(CUES)
    assert check_sets(sets) == []


def test_the_language_says_the_bad_word_where_it_belongs():
    language = Language.draw(3)
    words = [i for s in language.texts(200, "x") for i in s.input_ids]
    assert 0 < words.count(BAD) / len(words) < 0.2
    assert language == Language.draw(3) != Language.draw(4)
    assert language.pairs(5, "a") == language.pairs(5, "a") != language.pairs(5, "b")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"family": "gpt2"}, "unknown family"),
        ({"component": "layers"}, "unknown component"),
        ({"size": 1000}, "neurons to plant in"),
    ],
)
def test_what_cannot_be_planted(arguments: dict[str, Any], said: str):
    with pytest.raises(ExciseError, match=said):
        planted_behaviour(**arguments)
