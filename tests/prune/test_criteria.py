"""Criteria, a second time with loops in float64; and the sums they are made of."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError
from excise.prune.criteria import CRITERIA, get_criterion
from excise.prune.statistics import LinearFitter, LinearStatistics
from hypothesis import given
from hypothesis import strategies as st


OUT, IN, TOKENS = 5, 7, 11
PLAIN = {"tokens", "name", "seed"}


def drawn(seed: int = 0) -> tuple[Any, Any, Any, Any, Any]:
    """Return weight, inputs, plain and LRP gradients at the output, and token weights."""
    draw = torch.Generator().manual_seed(seed)
    shapes = ((OUT, IN), (TOKENS, IN), (TOKENS, OUT), (TOKENS, OUT), (TOKENS,))
    weight, x, g, lrp, r = (torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes)
    return weight, x, g, lrp, r.abs()


SAMPLES = (range(4), range(4, TOKENS))


def statistics_of(seed: int = 0) -> LinearStatistics:
    weight, x, g, lrp, r = drawn(seed)
    relevance = torch.einsum("oi,ti,to->toi", weight, x, lrp)
    return LinearStatistics(
        TOKENS,
        input_square=x.square().sum(0),
        input_sum=x.sum(0),
        gram=x.T @ x,
        gradient=g.T @ x,
        fisher=g.square().T @ x.square(),
        lrp_signed=relevance.sum(0),
        lrp_abs=sum((relevance[list(sample)].sum(0).abs() for sample in SAMPLES), torch.zeros(())),
        lrp_square=lrp.square().T @ x.square(),
        lrp_input_square=(r[:, None] * x.square()).sum(0),
        name="layers.0.mlp.up",
        seed=3,
    )


def slowly(name: str, i: int, j: int) -> float:
    """Score one weight from the tokens themselves."""
    weight, x, g, lrp, r = (tensor.tolist() for tensor in drawn())
    w, every = weight[i][j], range(TOKENS)

    def norm(k: int) -> float:
        return math.sqrt(sum(x[t][k] ** 2 for t in every))

    def moment(grad: Any, a: int, b: int) -> float:
        return abs(weight[a][b]) * math.sqrt(sum((x[t][b] * grad[t][a]) ** 2 for t in every) / 11)

    def over_mean(score: Any) -> float:
        return score(i, j) / (sum(score(a, b) for a in range(OUT) for b in range(IN)) / (OUT * IN))

    def wanda(a: int, b: int) -> float:
        return abs(weight[a][b]) * norm(b)

    def hybrid(grad: Any) -> float:
        return math.sqrt(over_mean(wanda) * over_mean(lambda a, b: moment(grad, a, b)))

    def factored() -> float:
        size = [sum(a * a for a in x[t]) for t in every]
        steep = [sum(b * b for b in g[t]) for t in every]
        row = sum(g[t][i] ** 2 * size[t] for t in every)
        column = sum(steep[t] * x[t][j] ** 2 for t in every)
        whole = sum(size[t] * steep[t] for t in every)
        return abs(w) * math.sqrt(row * column / whole / 11)

    def relevance(tokens: Any) -> float:
        return sum(w * x[t][j] * lrp[t][i] for t in tokens)

    return {
        "magnitude": lambda: abs(w),
        "wanda": lambda: wanda(i, j),
        "ria": lambda: (
            abs(w)
            * (
                1 / sum(abs(weight[a][j]) for a in range(OUT))
                + 1 / sum(abs(weight[i][b]) for b in range(IN))
            )
            * norm(j) ** 0.5
        ),
        "gradient-x-weight": lambda: abs(w * sum(x[t][j] * g[t][i] for t in every) / 11),
        "fisher": lambda: moment(g, i, j),
        "fisher-factored": factored,
        "lrp-signed": lambda: relevance(every) / 11,
        "lrp-abs": lambda: sum(abs(relevance(sample)) for sample in SAMPLES) / 11,
        "lrp": lambda: moment(lrp, i, j),
        "lrp-wanda": lambda: abs(w) * math.sqrt(sum(r[t] * x[t][j] ** 2 for t in every)),
        "wanda-fisher": lambda: hybrid(g),
        "wanda-lrp": lambda: hybrid(lrp),
    }[name]()


every_criterion = pytest.mark.parametrize("name", CRITERIA)


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "random"])
def test_scores_are_what_loops_give(name: str):
    expected = torch.tensor(
        [[slowly(name, i, j) for j in range(IN)] for i in range(OUT)], dtype=torch.float64
    )
    scores = CRITERIA[name].score(drawn()[0], statistics_of())
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)


@every_criterion
def test_a_line_is_complete(name: str):
    criterion = get_criterion(name)
    assert criterion.name == name
    assert criterion.summary
    assert criterion.source
    assert set(criterion.needs) <= {field.name for field in fields(LinearStatistics)}


@every_criterion
def test_half_precision_is_scored_in_float32(name: str):
    weight = drawn()[0].bfloat16()
    full = statistics_of()
    narrow = {n: v.float() for n, v in vars(full).items() if isinstance(v, torch.Tensor)}
    statistics = replace(full, **narrow)
    scores = CRITERIA[name].score(weight, statistics)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, CRITERIA[name].score(weight.float(), statistics))


@every_criterion
def test_scores_change_nothing(name: str):
    weight, statistics = drawn()[0].requires_grad_(), statistics_of()
    before = {k: v.clone() for k, v in vars(statistics).items() if isinstance(v, torch.Tensor)}
    scores = CRITERIA[name].score(weight, statistics)
    assert not scores.requires_grad
    assert torch.equal(weight, drawn()[0])
    assert all(torch.equal(vars(statistics)[k], v) for k, v in before.items())


@pytest.mark.parametrize("name", ["wanda-fisher", "wanda-lrp"])
def test_hybrids_have_no_scale(name: str):
    weight, statistics = drawn()[0], statistics_of()
    scores = CRITERIA[name].score(weight, statistics)
    grown = replace(
        statistics,
        input_square=statistics.input_square * 1e8,  # type: ignore[operator]
        fisher=statistics.fisher * 1e-6,  # type: ignore[operator]
        lrp_square=statistics.lrp_square * 1e-6,  # type: ignore[operator]
    )
    torch.testing.assert_close(CRITERIA[name].score(weight, grown), scores)
    silent = replace(statistics, fisher=torch.zeros(OUT, IN), lrp_square=torch.zeros(OUT, IN))
    ranks = CRITERIA[name].score(weight, silent).flatten().argsort()
    assert torch.equal(ranks, CRITERIA["wanda"].score(weight, statistics).flatten().argsort())


@pytest.mark.parametrize("name", ["wanda", "ria", "wanda-fisher", "lrp"])
def test_zeros_are_scores(name: str):
    weight, statistics = drawn()[0], statistics_of()
    weight[2], weight[:, 3] = 0.0, 0.0
    assert statistics.input_square is not None
    statistics.input_square[1] = 0.0
    scores = CRITERIA[name].score(weight, statistics)
    assert (scores[2] == 0).all()
    assert (scores[:, 3] == 0).all()
    assert name == "lrp" or (scores[:, 1] == 0).all()
    assert (CRITERIA[name].score(torch.zeros(OUT, IN), statistics)).isfinite().all()


def test_random_depends_on_seed_and_layer_alone():
    score, weight = CRITERIA["random"].score, drawn()[0]
    base = LinearStatistics(1, name="a", seed=1)
    scores = score(weight, base)
    assert torch.equal(scores, score(weight + 1, replace(statistics_of(), name="a", seed=1)))
    assert not torch.equal(scores, score(weight, replace(base, name="b")))
    assert not torch.equal(scores, score(weight, replace(base, seed=2)))
    state = torch.random.get_rng_state()
    score(weight, base)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "field"), [(c.name, n) for c in CRITERIA.values() for n in c.needs if n not in PLAIN]
)
def test_a_missing_statistic_is_named(name: str, field: str):
    score, weight = CRITERIA[name].score, drawn()[0]
    with pytest.raises(ExciseError, match=rf"'{name}' needs .*'{field}' of layers.0.mlp.up"):
        score(weight, replace(statistics_of(), **{field: None}))
    value = getattr(statistics_of(), field)
    wrong, broken = torch.ones((3,) * value.ndim), torch.full_like(value, torch.nan)
    with pytest.raises(ExciseError, match=rf"'{field}' of layers.0.mlp.up is \(3, ?3?\), and a"):
        score(weight, replace(statistics_of(), **{field: wrong}))
    with pytest.raises(ExciseError, match=f"scores by '{name}' of layers.0.mlp.up are NaN"):
        score(weight, replace(statistics_of(), **{field: broken}))


def test_what_cannot_be_scored_is_named():
    with pytest.raises(ExciseError, match="did you mean 'wanda'"):
        get_criterion("wnda")
    with pytest.raises(ExciseError, match="of 0 tokens"):
        CRITERIA["fisher"].score(drawn()[0], replace(statistics_of(), tokens=0))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.booleans())
def test_batches_and_padding_make_no_difference(lengths: Any, padded: bool):
    draw = torch.Generator().manual_seed(sum(lengths))
    samples = [torch.randn(n, 3, generator=draw) for n in lengths]
    if not sum(lengths):
        with pytest.raises(ExciseError, match="no tokens"):
            LinearFitter(3).result()
        return
    x, fitter = torch.cat(samples).double(), LinearFitter(3, dtype=torch.float64)
    if padded:
        width = max(lengths)
        batch = torch.full((len(lengths), width, 3), torch.nan)
        mask = torch.zeros(len(lengths), width, dtype=torch.bool)
        for k, n in enumerate(lengths):
            batch[k, :n], mask[k, :n] = samples[k], True
        fitter.update(batch, mask)
    else:
        for sample in samples:
            fitter.update(sample)
    result = fitter.result()
    assert result.tokens == sum(lengths)
    expected = {
        "input_square": x.square().sum(0),
        "input_sum": x.sum(0),
        "gram": x.T @ x,
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(result, name), value, rtol=1e-12, atol=1e-12)


def test_half_precision_is_summed_in_float32():
    x = torch.full((4096, 2), 300.0, dtype=torch.float16)  # its square is beyond float16
    fitter = LinearFitter(2)
    fitter.update(x)
    result = fitter.result()
    assert result.gram is not None
    torch.testing.assert_close(result.gram, torch.full((2, 2), 4096 * 9e4), rtol=1e-3, atol=0)
    before = result.gram.clone()
    fitter.update(x)
    assert torch.equal(result.gram, before)  # frozen
    assert LinearFitter(2, gram=False)._gram is None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((torch.ones(2, 4),), "reads 3 inputs, this batch has 4"),
        ((torch.ones(2, 3), torch.ones(3, dtype=torch.bool)), r"mask of up is \(3,\)"),
    ],
)
def test_a_batch_that_does_not_fit_adds_nothing(arguments: Any, named: str):
    fitter = LinearFitter(3, name="up")
    with pytest.raises(ExciseError, match=named):
        fitter.update(*arguments)
    with pytest.raises(ExciseError, match="up saw no tokens"):
        fitter.result()


def test_sums_that_cannot_be_right_are_refused():
    with pytest.raises(ExciseError, match="float16"):
        LinearFitter(3, dtype=torch.float16)
    fitter = LinearFitter(3)
    fitter.update(torch.full((1, 3), torch.inf))
    with pytest.raises(ExciseError, match="NaN or infinite"):
        fitter.result()
