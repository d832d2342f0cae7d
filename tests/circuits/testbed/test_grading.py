"""Marks for scores against a known circuit."""

import math
from typing import Any

import pytest
import torch
from excise.circuits.graph import Graph
from excise.circuits.testbed.grading import Grade, Marks, auroc, grade, recall_at_k
from excise.circuits.testbed.planted import Planted, planted
from excise.core.errors import ExciseError
from excise.core.families import ModelView
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu


@pytest.fixture(scope="module")
def bed() -> Planted:
    return planted("backup", "llama", seed=1, n=1)


def graph_of(bed: Planted) -> Graph:
    return Graph.of(ModelView.of(bed.model))


def true_scores(bed: Planted) -> dict[str, torch.Tensor]:
    """Score the circuit with 1 or -1, and all else with 0."""
    graph = graph_of(bed)
    heads, mlps, neurons = torch.zeros(6, 8), torch.zeros(6), torch.zeros(6, 64)
    edges = torch.zeros(len(graph.writers), len(graph.readers))
    for sign, (layer, head) in enumerate(sorted(bed.heads)):
        heads[layer, head] = (-1) ** sign
    for layer, unit in bed.neurons:
        neurons[layer, unit] = -1
    for layer in bed.mlps:
        mlps[layer] = 1
    for writer, reader in bed.edges:
        edges[graph.writer_index[writer], graph.reader_index[reader]] = -1
    return {"heads": heads, "mlps": mlps, "neurons": neurons, "edges": edges}


def test_auroc_by_hand():
    # pairs (true, false): .9 beats .8, .4, .4; .4 loses to .8 and ties with both .4
    assert auroc([0.9, 0.8, 0.4, 0.4, 0.4], [1, 0, 1, 0, 0]) == pytest.approx(4 / 6)
    assert auroc([3.0, 2.0, 1.0], [True, True, False]) == 1
    assert auroc([1.0, 2.0, 3.0], [True, True, False]) == 0
    assert auroc([1.0, 1.0, 1.0], [True, True, False]) == 0.5


scored = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({true for _, true in rows}) == 2
)


@given(scored)
def test_auroc_is_mann_whitney(rows: list[tuple[int, bool]]):
    scores, truth = zip(*rows, strict=True)
    u = mannwhitneyu(
        [score for score, true in rows if true], [score for score, true in rows if not true]
    ).statistic
    n = sum(truth)
    assert auroc(torch.tensor(scores), truth) == pytest.approx(u / (n * (len(rows) - n)))


@given(scored, st.randoms(use_true_random=False))
def test_recall_is_its_mean_over_orders_of_ties(rows: list[tuple[int, bool]], random: Any):
    scores, truth = map(list, zip(*rows, strict=True))
    k = sum(truth)
    border = sorted(scores)[-k]
    sure = sum(true for score, true in rows if score > border)
    tied = [true for score, true in rows if score == border]
    left = k - sum(score > border for score in scores)
    assert recall_at_k(scores, truth) == pytest.approx((sure + left * sum(tied) / len(tied)) / k)
    shuffled = random.sample(rows, len(rows))
    assert recall_at_k(*map(list, zip(*shuffled, strict=True))) == recall_at_k(scores, truth)


def test_recall_by_hand():
    assert recall_at_k([5.0, 4.0, 3.0, 2.0], [1, 0, 1, 0]) == 0.5
    assert recall_at_k([0.0, 0.0, 0.0, 0.0], [1, 0, 0, 0]) == 0.25


@pytest.mark.parametrize("measure", [auroc, recall_at_k])
def test_what_cannot_be_ranked_is_refused(measure: Any):
    with pytest.raises(ExciseError, match="0 of 2 items are true"):
        measure([1.0, 2.0], [False, False])
    with pytest.raises(ExciseError, match="2 of 2 items are true"):
        measure([1.0, 2.0], [True, True])
    with pytest.raises(ExciseError, match="1 scores are no numbers"):
        measure([1.0, math.nan], [True, False])
    with pytest.raises(ExciseError, match=r"\(3,\) and truth \(2,\)"):
        measure([1.0, 2.0, 3.0], [True, False])


def test_the_truth_gets_full_marks_whatever_the_signs(bed: Planted):
    found = grade(bed, **true_scores(bed))
    full = Marks(1, 1)
    assert (found.heads, found.mlps, found.neurons, found.edges) == (full, full, full, full)
    assert found.backups is not None
    assert found.backups.auroc == 0.5  # one tie among all
    assert found.backups.recall == pytest.approx(1 / (48 - len(bed.heads)))


def test_only_what_was_scored_is_graded(bed: Planted):
    found = grade(bed, mlps=true_scores(bed)["mlps"])
    assert found == Grade(mlps=Marks(1, 1))
    plain = planted("chain", "llama", n=1)
    assert grade(plain, heads=true_scores(plain)["heads"]).backups is None


def test_backups_count_neither_for_nor_against(bed: Planted):
    graph, scores = graph_of(bed), true_scores(bed)
    ((layer, head),) = bed.backups
    scores["heads"][layer, head] = 9
    scores["edges"][graph.writer_index["head", layer, head]] = 9
    scores["edges"][:, graph.reader_index["q", layer, head]] = 9
    scores["edges"][:, graph.reader_index["k", layer, head // 2]] = 9
    scores["edges"][~graph.is_edge] = math.nan  # what is no edge may hold anything
    found = grade(bed, **scores)
    assert found.heads == found.edges == found.backups == Marks(1, 1)

    other = next(h for h in range(8) if h // 2 != head // 2 and (layer, h) not in bed.heads)
    scores["heads"][layer, other] = 9
    scores["edges"][0, graph.reader_index["q", layer, other]] = 9
    found = grade(bed, **scores)
    assert found.heads is not None
    assert found.edges is not None
    assert found.heads.auroc < 1
    assert found.edges.auroc < 1


def test_random_scores_get_marks_of_chance(bed: Planted):
    draw = torch.Generator().manual_seed(0)
    scores = {k: torch.randn(v.shape, generator=draw) for k, v in true_scores(bed).items()}
    found = grade(bed, **scores)
    assert found.neurons is not None
    assert found.edges is not None
    assert 0.35 < found.neurons.auroc < 0.65
    assert 0.3 < found.edges.auroc < 0.7
    assert found.edges.recall < 0.2


def test_scores_of_another_shape_are_refused(bed: Planted):
    with pytest.raises(ExciseError, match=r"scores of heads have shape \(6, 4\).*\(6, 8\)"):
        grade(bed, heads=torch.zeros(6, 4))
    with pytest.raises(ExciseError, match="scores of edges have shape"):
        grade(bed, edges=torch.zeros(3, 3))
