"""Models with planted circuits: the truth, measured by exact patching with plain hooks."""

import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import islice
from typing import Any

import pytest
import torch
from excise.circuits.graph import Edge, Graph, Reader, Writer
from excise.circuits.testbed.grading import auroc
from excise.circuits.testbed.plan import N_HEADS, N_KV_HEADS, N_LAYERS, draw_plan
from excise.circuits.testbed.planted import CIRCUITS, Planted, planted
from excise.circuits.testbed.space import draw_space
from excise.circuits.testbed.task import draw_pairs, draw_tables, solve
from excise.core.errors import ExciseError
from excise.core.families import ModelView
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear
from transformers import LlamaForCausalLM, OPTForCausalLM


BEDS = [(c, f, i) for i, (c, f) in enumerate((c, f) for c in CIRCUITS for f in ("llama", "opt"))]
HEADS = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]

Hook = tuple[nn.Module, bool, Callable[..., Any]]
"""(module, whether before it, function)"""


class Bench:
    """Patches activations of the clean prompts with those of the counterfactual ones."""

    def __init__(self, bed: Planted):
        self.bed = bed
        self.view = ModelView.of(bed.model)
        self.layers: list[Any] = list(self.view.layers)
        self.samples = [
            torch.tensor([s.input_ids for s in samples])
            for samples in (bed.clean, bed.counterfactual)
        ]
        self.answers = torch.tensor([s.answer for s in bed.clean])
        self.wrongs = torch.tensor([s.wrong for s in bed.clean])
        body = bed.model.get_submodule(self.view.family.body)
        self.norm = body.norm if bed.family == "llama" else body.final_layer_norm
        self.records = self.record(0), self.record(1)
        self.clean, self.other = self.differences(), self.differences(which=1)
        self.gap = float((self.clean - self.other).mean())

    def run(self, hooks: tuple[Hook, ...] = (), which: int = 0) -> Tensor:
        handles = [
            module.register_forward_pre_hook(f) if before else module.register_forward_hook(f)
            for module, before, f in hooks
        ]
        try:
            with torch.no_grad():
                return self.bed.model(input_ids=self.samples[which], use_cache=False).logits[:, -1]
        finally:
            for handle in handles:
                handle.remove()

    def differences(self, hooks: tuple[Hook, ...] = (), which: int = 0) -> Tensor:
        logits = self.run(hooks, which)
        rows = torch.arange(len(logits))
        return logits[rows, self.answers] - logits[rows, self.wrongs]

    def effect(self, *hooks: Hook) -> float:
        """Return the loss of logit difference, as a share of clean minus counterfactual."""
        return float((self.clean - self.differences(hooks)).mean()) / self.gap

    def record(self, which: int) -> dict[Any, Tensor]:
        found: dict[Any, Tensor] = {}

        def keep(key: Any) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Tensor], out: Tensor | None = None) -> None:
                found[key] = args[0] if out is None else out

            return hook

        hooks: list[Hook] = [(self.layers[0].attention_norm, True, keep(("embed",)))]
        for index, layer in enumerate(self.layers):
            hooks += [
                (layer.attention_out, True, keep(("values", index))),
                (layer.mlp_out, True, keep(("hidden", index))),
                (layer.mlp_out, False, keep(("mlp", index))),
            ]
        self.run(tuple(hooks), which)
        for layer, head in HEADS:
            part = self.part(head)
            weight = self.layers[layer].attention_out.weight.detach()[:, part]
            found["head", layer, head] = found["values", layer][..., part] @ weight.T
        return found

    def part(self, head: int) -> slice:
        return slice(head * self.view.head_dim, (head + 1) * self.view.head_dim)

    def swap(self, key: tuple[str, int], units: Any, module: nn.Module, zero: bool = False) -> Hook:
        def hook(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            changed = args[0].clone()
            changed[..., units] = 0 if zero else self.records[1][key][..., units]
            return (changed,)

        return module, True, hook

    def swap_head(self, layer: int, head: int, zero: bool = False) -> Hook:
        out = self.layers[layer].attention_out
        return self.swap(("values", layer), self.part(head), out, zero)

    def swap_neurons(self, layer: int, units: list[int]) -> Hook:
        return self.swap(("hidden", layer), units, self.layers[layer].mlp_out)

    def swap_mlp(self, layer: int) -> Hook:
        return self.layers[layer].mlp_out, False, lambda *_: self.records[1]["mlp", layer]

    def swap_edge(self, writer: Writer, reader: Reader) -> tuple[Hook, ...]:
        """Let one reader see the stream with the counterfactual output of one writer."""
        delta = self.records[1][writer] - self.records[0][writer]

        def shifted(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            return (args[0] + delta.view_as(args[0]),)

        if reader[0] == "logits":
            return ((self.norm, True, shifted),)
        layer = self.layers[reader[1]]
        if reader[0] == "mlp":
            return ((layer.mlp_norm, True, shifted),)
        q_proj, k_proj = layer.query_key
        projection = {"q": q_proj, "k": k_proj, "v": layer.value}[reader[0]]
        seen: list[Tensor] = []

        def replaced(module: Any, _: Any, out: Tensor) -> Tensor:
            norm, stream = layer.attention_norm, seen[0] + delta.view_as(seen[0])
            if self.bed.family == "llama":
                mean = stream.square().mean(-1, keepdim=True)
                normed = stream * torch.rsqrt(mean + norm.variance_epsilon) * norm.weight
            else:
                shape = stream.shape[-1:]
                normed = layer_norm(stream, shape, norm.weight, norm.bias, norm.eps)
            changed, part = out.clone(), self.part(reader[2])
            changed[..., part] = linear(normed, module.weight, module.bias)[..., part]
            return changed

        return (
            (layer.attention_norm, True, lambda _, args: seen.append(args[0])),
            (projection, False, replaced),
        )


@cache
def bench(circuit: str, family: str, seed: int) -> Bench:
    return Bench(planted(circuit, family, seed, n=48))


@pytest.fixture(params=BEDS, ids=lambda bed: "-".join(map(str, bed)))
def case(request: pytest.FixtureRequest) -> Bench:
    return bench(*request.param)


def test_the_model_solves_every_prompt(case: Bench):
    assert (case.run().argmax(-1) == case.answers).all()
    assert (case.run(which=1).argmax(-1) == case.wrongs).all()
    assert float(case.clean.mean()) > 3
    assert float(case.other.mean()) < -3


def test_heads_of_the_circuit_and_no_others_matter(case: Bench):
    bed = case.bed
    effects = {head: case.effect(case.swap_head(*head)) for head in HEADS}
    for head in HEADS:
        if head in bed.negatives:
            assert effects[head] < -0.2
        elif head in bed.heads:
            assert effects[head] > 0.2, head
        else:
            assert abs(effects[head]) < (0.1 if head in bed.backups else 0.05), head


def test_mlps_and_neurons_of_the_circuit_and_no_others_matter(case: Bench):
    for layer in range(N_LAYERS):
        planted_units = [unit for at, unit in sorted(case.bed.neurons) if at == layer]
        others = [unit for unit in range(64) if unit not in planted_units]
        whole = case.effect(case.swap_mlp(layer))
        assert abs(case.effect(case.swap_neurons(layer, others))) < 0.06
        if layer in case.bed.mlps:
            assert whole > 0.2
            assert case.effect(case.swap_neurons(layer, planted_units)) > 0.2
            for unit in planted_units[::4]:
                assert case.effect(case.swap_neurons(layer, [unit])) > 0.01
        else:
            assert abs(whole) < 0.06
            assert not planted_units


def test_edges_of_the_circuit_and_no_others_matter(case: Bench):
    bed, graph = case.bed, Graph.of(case.view)
    heads = bed.heads | bed.backups
    writers = {("embed",), *(("head", *head) for head in heads), *(("mlp", at) for at in bed.mlps)}
    backups = {("head", *head) for head in bed.backups}

    def counts(edge: Edge) -> bool:
        return edge[0] not in backups and not backups & set(graph.node_of(edge[1]))

    def within(edge: Edge) -> bool:
        node = graph.node_of(edge[1])
        return edge[0] in writers and (not node or bool(set(node) & writers))

    others = [edge for edge in graph.edges(graph.is_edge) if counts(edge) and edge not in bed.edges]
    draw = random.Random(0)
    inside = [edge for edge in others if within(edge)]  # the likeliest to matter
    outside = draw.sample([edge for edge in others if not within(edge)], 10)
    for edge in bed.edges:
        assert abs(case.effect(*case.swap_edge(*edge))) > 0.04, edge
    for edge in draw.sample(inside, 25) + outside:
        assert abs(case.effect(*case.swap_edge(*edge))) < 0.06, edge


@pytest.mark.parametrize("case", [bed for bed in BEDS if bed[0] == "backup"], indirect=True)
def test_the_backup_acts_where_the_answer_is_missing(case: Bench):
    ((layer, head),) = case.bed.backups
    (main,) = [head for head in case.bed.heads if head[0] > max(case.bed.mlps)]
    backup = case.swap_head(layer, head)
    alone = case.effect(backup)
    assert abs(alone) < 0.1
    assert case.effect(case.swap_head(*main), backup) - case.effect(case.swap_head(*main)) > 0.2
    gone = case.swap_head(*main, zero=True)
    assert case.effect(gone, case.swap_head(layer, head, zero=True)) - case.effect(gone) > 0.15


def test_circuits_attend_sharply_yet_not_wholly(case: Bench):
    model, bed = case.bed.model, case.bed
    model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = model(input_ids=case.samples[0], output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    for layer, head in bed.heads - bed.negatives:
        row = -1 if layer > max(bed.mlps) else -2
        assert 0.8 < float(patterns[layer][:, head, row].amax(-1).mean()) < 0.98


def test_distractors_are_as_loud_as_the_circuit(case: Bench):
    sizes = [
        float(case.records[0]["head", layer, head].norm(dim=-1).mean()) for layer, head in HEADS
    ]
    assert min(sizes) > 0.25
    assert 0.2 < auroc(sizes, [head in case.bed.heads for head in HEADS]) < 0.9


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_seed_gives_one_model_and_touches_nothing_else(family: str):
    before = torch.random.get_rng_state()
    one, two = planted("chain", family, 3, n=8), planted("chain", family, 3, n=20)
    assert torch.equal(before, torch.random.get_rng_state())
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, two.model.state_dict()[name])
    assert two.clean[:8] == one.clean
    assert two.counterfactual[:8] == one.counterfactual
    assert (one.heads, one.edges, one.neurons) == (two.heads, two.edges, two.neurons)
    assert planted("chain", family, 4, n=1).neurons != one.neurons


@pytest.mark.parametrize(("family", "kind"), [("llama", LlamaForCausalLM), ("opt", OPTForCausalLM)])
def test_models_are_stock_and_every_weight_is_alive(family: str, kind: type):
    model = planted("chain", family, n=1).model
    assert type(model) is kind
    assert not model.training
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert bool(parameter.isfinite().all()), name
        if "layers" in name and parameter.ndim == 2 and not name.endswith("q_proj.weight"):
            assert float((parameter != 0).float().mean()) > 0.9, name


@pytest.mark.parametrize("circuit", list(CIRCUITS))
@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), n_groups=st.sampled_from([N_KV_HEADS, N_HEADS]))
def test_plans_are_whole_circuits_of_the_graph(circuit: str, seed: int, n_groups: int):
    plan = draw_plan(circuit, random.Random(seed))
    graph = Graph(N_LAYERS, N_HEADS, n_groups)
    chosen = torch.zeros_like(graph.is_edge)
    for writer, reader in plan.edges(n_groups):
        chosen[graph.writer_index[writer], graph.reader_index[reader]] = True
    assert (chosen <= graph.is_edge).all()
    assert (graph.connected(chosen) == chosen).all()
    fed = {node for _, reader in plan.edges(n_groups) for node in graph.node_of(reader)}
    writing = {writer for writer, _ in plan.edges(n_groups)}
    assert writing <= fed | {("embed",)}
    assert writing == {
        ("embed",),
        *(("head", *head) for head in plan.heads),
        *(("mlp", layer) for layer in plan.lookup),
    }
    extra = {plan.backup} if plan.backup else set()
    groups = Counter((layer, head // 2) for layer, head in plan.heads | extra)
    assert max(groups.values()) == 1
    assert len(plan.heads | extra) == 6
    assert len(plan.neurons) == 24
    assert (plan.backup is not None) == (circuit == "backup")
    assert (plan.suppress is not None) == (circuit == "negative")


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_pairs_differ_in_one_thing_that_decides(seed: int):
    draw = random.Random(seed)
    tables = draw_tables(draw)
    assert all(sorted(table) == list(range(6)) for table in tables)
    assert all(a != b for a, b in zip(*tables, strict=True))
    changes = Counter()
    for clean, other in islice(draw_pairs(tables, draw), 48):
        assert clean.answer == solve(clean.input_ids, tables) == other.answer
        assert clean.wrong == solve(other.input_ids, tables) == other.wrong
        assert clean.answer != clean.wrong
        assert len(clean.input_ids) == len(other.input_ids) == 13
        differ = [
            pair for pair in zip(clean.input_ids, other.input_ids, strict=True) if len({*pair}) > 1
        ]
        changes[frozenset(token // 2 if token < 8 else "letter" for token in differ[0])] += 1
        assert len(differ) == (2 if differ[0][0] in (2, 3) else 1)
    assert sorted(changes.values()) == [12, 12, 12, 12]


def test_the_answer_by_hand():
    tables = ((0, 1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 0))
    #         BOS fill >2  f  rule1 >1 c  stray ask =
    prompt = [0, 8, 3, 19, 6, 2, 16, 17]
    assert solve([*prompt, 4, 1], tables) == 22
    assert solve([*prompt, 5, 1], tables) == 25
    assert solve([*prompt[:4], 7, *prompt[5:], 4, 1], tables) == 23


def test_the_stream_is_orthogonal_and_positions_match_one_back():
    space = draw_space(torch.Generator().manual_seed(0))
    rows = torch.cat(list(space.rows.values())).double()
    assert torch.allclose(rows @ rows.T, torch.eye(95).double(), atol=1e-5)
    assert float(rows.sum(1).abs().max()) < 1e-5
    query, key = space.before()
    places = space.positions()
    scores = (places @ query.T) @ (places @ key.T).T
    assert scores.tril()[1:].argmax(-1).tolist() == list(range(12))


def test_what_cannot_be_planted_is_named():
    with pytest.raises(ExciseError, match="unknown circuit 'chian': did you mean 'chain'"):
        planted("chian")
    with pytest.raises(ExciseError, match="unknown family 'gpt2'"):
        planted(family="gpt2")
    with pytest.raises(ExciseError, match="asked for 0 prompts"):
        planted(n=0)
