"""Random edits: the same profile, none of the chosen, none twice; where an edit stands in them."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from excise.core.errors import ExciseError
from excise.core.generation import Decoding
from excise.core.identity import model_hash
from excise.core.loading import Loaded
from excise.correction.controls import Band, measure_controls, random_edits
from excise.correction.data.recipes import toxicity_target
from excise.edits.edit import Edit
from excise.eval.perplexity import Perplexity
from excise.eval.run import evaluate
from excise.eval.scorers import Scorer
from excise.tasks.ioi import ioi_prompts
from hypothesis import given, settings
from hypothesis import strategies as st


FACTORS = (0.0, 0.5, -0.5)
units = st.dictionaries(
    st.tuples(st.integers(0, 1), st.integers(0, 23)), st.sampled_from(FACTORS), max_size=9
)
heads = st.dictionaries(
    st.tuples(st.integers(0, 1), st.integers(0, 3)), st.sampled_from(FACTORS), max_size=2
)


def profile(found: Any) -> Counter[Any]:
    return Counter((layer, factor) for (layer, _), factor in found.items())


@settings(max_examples=30)
@given(neurons=units, heads=heads, guarded=st.sets(st.integers(0, 23), max_size=5),
       seed=st.integers(0, 3))  # fmt: skip
@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_the_same_profile_and_nothing_in_common(
    tiny: Any, kind: str, neurons: Any, heads: Any, guarded: set[int], seed: int
):
    model = _once(tiny, kind)
    protected = torch.zeros(2, 24, dtype=torch.bool)
    protected[:, list(guarded)] = True
    edit = Edit(neurons=neurons, heads=heads)
    found = random_edits(edit, model, 6, seed, {"neurons": protected})
    assert len(found) == 6 or (len(found) < 6 and len(neurons) <= 1)
    assert len({one.digest for one in found}) == len({_places(one) for one in found}) == len(found)
    for one in found:
        assert profile(one.neurons) == profile(edit.neurons)
        assert profile(one.heads) == profile(edit.heads)
        assert not set(one.neurons) & set(edit.neurons)
        assert not set(one.heads) & set(edit.heads)
        assert not any(protected[layer, unit] for layer, unit in one.neurons)
    again = random_edits(edit, model, 6, seed, {"neurons": protected})
    assert [one.digest for one in again] == [one.digest for one in found]


_MODELS: dict[str, Any] = {}


def _once(tiny: Any, kind: str) -> Any:
    return _MODELS.setdefault(kind, tiny(kind))


def _places(edit: Edit) -> Any:
    return tuple(edit.neurons), tuple(edit.heads)


def test_weights_stay_in_their_matrix(tiny: Any):
    name = "model.layers.0.mlp.down_proj.weight"
    edit = Edit(weights={name: (torch.tensor([1, 5, 9]), torch.tensor([0.0, 0.0, 0.5]))})
    for one in random_edits(edit, tiny("llama-gqa"), 5):
        indices, factors = one.weights[name]
        assert not {1, 5, 9} & set(indices.tolist())
        assert sorted(factors.tolist()) == [0.0, 0.0, 0.5]


def test_fewer_where_fewer_exist_and_none_is_an_error(tiny: Any):
    model = tiny("opt")
    assert len(random_edits(Edit(heads={(0, 1): 0.0}), model, 20)) == 3
    full = Edit(heads={(0, h): 0.0 for h in range(3)})
    with pytest.raises(ExciseError, match="layer 0 has 1 heads that are neither chosen"):
        random_edits(full, model, 2)
    with pytest.raises(ExciseError, match="controls is 0"):
        random_edits(full, model, 0)


def test_band_and_p_by_hand():
    values = tuple(float(x) for x in np.random.default_rng(0).normal(size=20))
    top = Band("x", max(values) + 1, values)
    assert top.p() == 1 / 21
    assert Band("x", min(values), values).p() == 1.0
    ordered = sorted(values)
    low, high = top.band
    assert low == pytest.approx(ordered[0] + 0.95 * (ordered[1] - ordered[0]))
    assert high == pytest.approx(ordered[18] + 0.05 * (ordered[19] - ordered[18]))
    tie = Band("x", ordered[10], values)
    assert tie.p() == (1 + 10) / 21
    assert top.to_json()["n"] == 20


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_measured_as_one_by_one(tiny: Any, tiny_tokenizer: Any, kind: str):
    loaded = Loaded(tiny(kind), tiny_tokenizer, kind)
    prompts = [p.clean for p in ioi_prompts(tiny_tokenizer, 12)]
    judge = Scorer("a", "a", "words", lambda texts: [min(1, len(t) / 90) for t in texts])
    target = toxicity_target([judge], Decoding(0, 5))
    metrics = [target.metric(prompts), Perplexity([" . ".join(prompts)], "window", 16, 8)]
    edit = Edit(neurons={(0, 1): 0.0, (1, 2): 0.5})
    hashed = model_hash(loaded.model)
    before = evaluate(loaded, metrics)
    with edit.applied(loaded.model):
        after = evaluate(loaded, metrics)
    drawn = random_edits(edit, loaded.model, 3)
    told: list[str] = []
    found = measure_controls(loaded, drawn, metrics, target.judge, before, after, tell=told.append)
    assert found is not None
    assert model_hash(loaded.model) == hashed
    assert len(told) == 3
    for number, one in enumerate(drawn):
        with one.applied(loaded.model):
            alone = evaluate(loaded, metrics)
        means = [e["toxicity"].columns["mean"].mean() for e in (before, alone)]
        assert found.gain.random[number] == pytest.approx(1 - means[1] / means[0])
        losses = [e["perplexity"].columns for e in (before, alone)]
        ratio = [np.exp(c["loss"].sum() / c["tokens"].sum()) for c in losses]
        assert found.cost.random[number] == pytest.approx(ratio[1] / ratio[0] - 1)
    assert found.failed == 0


def test_controls_that_cannot_be_measured_are_counted(tiny: Any, tiny_tokenizer: Any):
    loaded = Loaded(tiny("opt"), tiny_tokenizer, "opt")
    fail: list[int] = []

    def score(texts: list[str]) -> list[float]:
        if fail:
            raise ValueError("broken")
        return [0.5 for _ in texts]

    target = toxicity_target([Scorer("s", None, "python", score)], Decoding(0, 4))
    prompts = [p.clean for p in ioi_prompts(tiny_tokenizer, 8)]
    metrics = [target.metric(prompts), Perplexity([" . ".join(prompts)], "window", 16, 4)]
    before = evaluate(loaded, metrics)
    edits = random_edits(Edit(neurons={(0, 1): 0.0}), loaded.model, 2)
    found = measure_controls(loaded, edits, metrics, target.judge, before, before)
    assert found is not None
    assert found.gain.random == (0.0, 0.0)
    fail.append(1)
    assert measure_controls(loaded, edits, metrics, target.judge, before, before) is None


def test_more_than_half_of_a_matrix_leaves_no_control(tiny_opt: Any):
    name = "model.decoder.layers.1.fc2.weight"
    n = tiny_opt.get_parameter(name).numel()
    edit = Edit(weights={name: (torch.arange(n // 2), torch.zeros(n // 2))})
    (control,) = random_edits(edit, tiny_opt, 1)
    drawn, _ = control.weights[name]
    assert drawn.min() >= n // 2
    more = Edit(weights={name: (torch.arange(n // 2 + 1), torch.zeros(n // 2 + 1))})
    with pytest.raises(ExciseError, match=f"{name} has {n - n // 2 - 1} weights"):
        random_edits(more, tiny_opt, 1)
