"""Scoring: batches in, one relevance out."""

import fnmatch
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..core.data import Batch, Sample, fingerprint
from ..core.errors import ExciseError, finer
from ..core.families import ModelView
from ..core.frozen import frozen
from ..core.identity import check_finite, model_hash
from ..core.provenance import KEY, NONE, UNKNOWN
from .methods import Aggregate, check_aggregate, get_method
from .recorder import Recorder
from .relevance import Relevance
from .scope import Audit, LRPScope
from .targets import Target, get_target


COMPONENTS = ("heads", "neurons", "tokens")
LINEAR = ("Linear",)
"""Classes whose weights can be scored; quantised linears hold no weight to multiply with."""


class RelevanceFitter:
    """Score components batch by batch; `result()` ends in a frozen `Relevance`.

    Args:
        model: A causal language model of a supported family.
        target: What is explained: a name of `TARGETS` or a callable on (logits, batch).
        method: A name of `METHODS`.
        components: Which of `heads`, `neurons`, `tokens`.
        weights: Which weight matrices: glob patterns over the paths of the layers' linears, such
            as `*mlp*` or `*`; none by default, since each takes a float32 copy of itself.
        aggregate: `signed`, `abs` (per sample) or `square` (second moment per token).
        epsilon: Stabiliser of linear layers, for methods with relevance rules.
        steps: Gradients averaged by integrated gradients.
        keep_samples: Keep per-sample values of heads and neurons, for confidence bounds.
        skip_first_token: Leave each sample's first token out of heads, neurons and weights.
        seed: Of the method `random`.

    Raises:
        ExciseError: Unknown names, a pattern that matches nothing, weights of quantised layers.
        UnsupportedModelError: The model has no row or no rule.
    """

    def __init__(
        self,
        model: Any,
        target: Target | str = "next-tokens",
        method: str = "lrp",
        components: Sequence[str] = COMPONENTS,
        weights: Sequence[str] = (),
        aggregate: Aggregate = "signed",
        *,
        epsilon: float = 0.0,
        steps: int = 8,
        keep_samples: bool = True,
        skip_first_token: bool = False,
        seed: int = 0,
    ):
        components = tuple(dict.fromkeys(components))
        for name in components:
            if name not in COMPONENTS:
                raise ExciseError(f"unknown component {name!r}: known are {', '.join(COMPONENTS)}")
        if not components and not weights:
            raise ExciseError(f"nothing to score: name some of {', '.join(COMPONENTS)}, or weights")
        if steps < 1:
            raise ExciseError(f"steps is {steps}: give at least 1")
        self.view = ModelView.of(model)
        self.method_name, self.method = method, get_method(method)
        self.target_name = target if isinstance(target, str) else repr(target)
        self.target = get_target(target) if isinstance(target, str) else target
        self.components = components
        self.aggregate: Aggregate = aggregate
        self.steps, self.seed = steps, seed
        self.keep_samples = keep_samples
        self.epsilon, self.skip_first_token = epsilon, skip_first_token
        check_aggregate(self.method, aggregate, bool(weights))
        self.n_samples = 0
        self.value = 0.0
        self.linears = select_linears(self.view, weights)
        self._recorder = Recorder(
            self.view,
            self.method,
            aggregate,
            heads="heads" in components,
            neurons="neurons" in components,
            tokens="tokens" in components,
            weights=self.linears,
            skip_first_token=skip_first_token,
        )
        rules = self.method.rules
        self._scope = LRPScope(model, rules, epsilon) if rules else None
        self._values: dict[str, list[Tensor]] = {name: [] for name in components}
        self._sums: dict[str, Tensor] = {}
        self._ids: list[Tensor] = []
        self._asked: list[Tensor] = []
        self._positions = 0.0
        self._broken = False

    def update(self, batch: Batch) -> None:
        """Score one batch.

        Args:
            batch: Padded samples; each sample's scores are those it would have alone.

        Raises:
            ExciseError: The model gave no finite value for a sample, or memory ran out. What was
                gathered is then part of a batch ahead: the fitter refuses to go on.
        """
        if self._broken:
            raise ExciseError("an earlier batch failed half-way: make a new fitter")
        self._broken = True
        if not self.method.random:
            try:
                self._run(batch.to(self.view.embedding.weight.device))
            except torch.OutOfMemoryError:
                raise ExciseError(
                    f"out of memory with {len(batch)} samples of {batch.input_ids.shape[1]} "
                    "tokens: use a smaller --batch-size or --length, or fewer weight matrices"
                ) from None
        self._broken = False
        for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
            self._ids.append(row[mask.bool()].cpu())
        self._asked.append(batch.asked.cpu())
        self.n_samples += len(batch)

    @property
    def _dtype(self) -> torch.dtype:
        return self.view.embedding.weight.dtype

    def audit(self) -> Audit | None:
        """Return which rules fired where so far; None for methods without rules."""
        return self._scope.audit() if self._scope else None

    def result(self) -> Relevance:
        """Return the mean over all samples so far.

        Raises:
            ExciseError: There were no samples, or a score is not finite.
        """
        if not self.n_samples:
            raise ExciseError("nothing was scored: give at least one sample")
        if self.method.random:
            return self._random()
        single = {
            n: self._sums[n] / self.n_samples for n in ("heads", "neurons") if n in self._sums
        }
        weights = {f"{path}.weight": self._weight(path) for path in self.linears}
        for name, tensor in (*single.items(), *weights.items()):
            if not bool(tensor.isfinite().all()):
                raise ExciseError(f"the scores of {name} are not finite: {finer(self._dtype)}")
        ids, tokens = None, None
        if self._values.get("tokens"):
            ids = pad_sequence(self._ids, batch_first=True, padding_value=-1)
            tokens = pad_sequence(self._values["tokens"], batch_first=True)
        samples = {n: torch.cat(self._values[n]) for n in single} if self.keep_samples else {}
        return Relevance(
            self._config(), **single, tokens=tokens, token_ids=ids, weights=weights, samples=samples
        )

    def weight_sums(self) -> dict[str, Tensor]:
        """Return what the scores of weights are made of, before any factor of the weight.

        Returns:
            By the path of the linear, (out, in), float32: sums over tokens of `g x` (aggregate
            `signed`), over samples of its size (`abs`), or over tokens of `(g x)^2` (`square`).
        """
        return dict(self._recorder.weight_sums)

    def state(self) -> dict[str, Tensor]:
        """Return everything gathered so far as tensors, to go on later or to merge."""
        state = {f"sum/{name}": total for name, total in self._sums.items()}
        state |= {f"weight/{path}": total for path, total in self._recorder.weight_sums.items()}
        state |= {
            f"values/{n}": torch.cat(v) for n, v in self._values.items() if v and v[0].ndim > 1
        }
        if tokens := self._values.get("tokens"):
            state["tokens"] = torch.cat(tokens)
        state["ids"] = torch.cat([*self._ids, torch.empty(0, dtype=torch.long)])
        state["asked"] = torch.cat([*self._asked, torch.empty(0, 3, dtype=torch.long)])
        state["lengths"] = torch.tensor([len(ids) for ids in self._ids], dtype=torch.long)
        state["totals"] = torch.tensor([self.value, self._positions], dtype=torch.float64)
        if self._scope:
            state["residual"] = self._scope.residual
        return state

    def load_state(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Replace what was gathered by one state, or by several put together in order.

        Args:
            states: What `state()` returned, here or in other processes.
        """
        self._recorder.weight_sums = {
            path: total.to(self.linears[path].weight.device)
            for path, total in _added(states, "weight/").items()
        }
        self._sums = _added(states, "sum/")
        self._ids, self._values = [], {name: [] for name in self.components}
        self._asked = [state["asked"] for state in states]
        totals = torch.zeros(2, dtype=torch.float64)
        for state in states:
            lengths = state["lengths"].tolist()
            self._ids += state["ids"].split(lengths)
            if "tokens" in state:
                self._values["tokens"] += state["tokens"].split(lengths)
            for name in self.components:
                if f"values/{name}" in state:
                    self._values[name].append(state[f"values/{name}"])
            totals += state["totals"]
        self.n_samples = len(self._ids)
        self.value, self._positions = totals.tolist()
        if self._scope:
            self._scope.residual = torch.stack([state["residual"] for state in states]).sum(0)

    def _run(self, batch: Batch) -> None:
        recorder = self._recorder
        recorder.start(batch)
        with ExitStack() as stack:
            stack.enter_context(self._scope or frozen(self.view))
            stack.enter_context(recorder)
            if self.method.contribution is None:
                with torch.no_grad():
                    self._forward(batch)
            elif self.method.steps:
                self._integrate(batch)
            else:
                self._backward(self._forward(batch), batch)
        self._collect(batch)

    def _forward(self, batch: Batch) -> Tensor:
        inputs = batch.model_inputs(self.view.family.passes_position_ids)
        return self.view.model(**inputs).logits

    def _backward(self, logits: Tensor, batch: Batch, scale: float = 1.0) -> None:
        values = self.target(logits, batch)
        if values.shape != (len(batch),):
            raise ExciseError(
                f"target {self.target_name!r} gave shape {tuple(values.shape)} for "
                f"{len(batch)} samples: return one value per sample"
            )
        if not bool(values.isfinite().all()):
            check_finite(self.view.model)
            raise ExciseError(f"the model's output is NaN or infinite here: {finer(self._dtype)}")
        self.value += values.detach().float().sum().item() * scale
        (values.sum() * scale).backward()

    def _integrate(self, batch: Batch) -> None:
        """Average gradients at the midpoints of the path from zeroed token embeddings."""
        recorder = self._recorder
        recorder.keep_clean(True)
        with torch.no_grad():
            self._forward(batch)
        recorder.keep_clean(False)
        for step in range(self.steps):
            recorder.alpha = (step + 0.5) / self.steps
            self._backward(self._forward(batch), batch, 1.0 / self.steps)
        recorder.alpha = 1.0

    def _collect(self, batch: Batch) -> None:
        for name in self.components:
            values = self._recorder.per_sample(name)
            if name == "tokens":
                if self.method.contribution is None:
                    continue
                self._positions += self._recorder.per_sample("positions").sum().item()
                mask = batch.attention_mask.bool().cpu()
                self._values[name].extend(row[m] for row, m in zip(values, mask, strict=True))
                continue
            if self.keep_samples:
                self._values[name].append(values)
            total = values.sum(0)
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def _weight(self, path: str) -> Tensor:
        """Finish a weight matrix's scores: in place, so that one float32 copy is all there is."""
        weight = self.linears[path].weight.detach()
        total = self._recorder.weight_sums.get(path)
        if total is None:  # CP-LRP holds what this layer feeds constant
            return torch.zeros_like(weight, dtype=torch.float32)
        if self.method.contribution is None:
            return (total / self.n_samples).sqrt() * weight.abs()
        total = total.div_(self.n_samples)
        if not self.method.weight_factor:
            return total.abs_()
        if self.aggregate == "signed":
            return total.mul_(weight)
        return total.mul_(weight.abs() if self.aggregate == "abs" else weight.square())

    def _random(self) -> Relevance:
        generator = torch.Generator().manual_seed(self.seed)
        view = self.view
        shapes = {"heads": view.n_heads, "neurons": view.d_mlp}
        single: dict[str, Any] = {
            name: torch.rand(len(view.layers), width, generator=generator)
            for name, width in shapes.items()
            if name in self.components
        }
        weights = {
            f"{path}.weight": torch.rand(linear.weight.shape, generator=generator)
            for path, linear in self.linears.items()
        }
        return Relevance(self._config(), **single, weights=weights)

    def _samples(self) -> Iterator[Sample]:
        """Give what was scored as samples again, with what was asked of each."""
        for ids, asked in zip(self._ids, torch.cat(self._asked).tolist(), strict=True):
            answer, wrong = (None if token < 0 else token for token in asked[:2])
            yield Sample(tuple(ids.tolist()), answer, wrong, asked[2])

    def _config(self) -> dict[str, Any]:
        view, audit = self.view, self.audit()
        recorded = {
            "model": view.model.config.name_or_path or view.family.name,
            "model_hash": model_hash(view.model),
            "family": view.family.name,
            "dtype": str(view.embedding.weight.dtype).removeprefix("torch."),
            "n_layers": len(view.layers),
            "n_heads": view.n_heads,
            "n_kv_heads": view.n_kv_heads,
            "d_mlp": view.d_mlp,
            "method": self.method_name,
            "target": self.target_name,
            "aggregate": self.aggregate,
            "epsilon": self.epsilon,
            "steps": self.steps if self.method.steps else None,
            "skip_first_token": self.skip_first_token,
            "seed": self.seed if self.method.random else None,
            "n_samples": self.n_samples,
            "data": fingerprint(self._samples()),
            KEY: UNKNOWN if self._ids else NONE,  # batches do not say which texts they are of
            "mean_value": self.value / self.n_samples,
            "position_relevance": self._positions / self.n_samples,
        }
        if audit:
            recorded["rules"] = dict(Counter(record.rule for record in audit.rules))
            recorded["relevance_by_layer"] = [total / self.n_samples for total in audit.layers]
        return recorded


def _added(states: Sequence[Mapping[str, Tensor]], prefix: str) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for state in states:
        for key, tensor in state.items():
            if key.startswith(prefix):
                name = key.removeprefix(prefix)
                total[name] = total[name] + tensor if name in total else tensor
    return total


def select_linears(view: ModelView, patterns: Sequence[str]) -> dict[str, nn.Linear]:
    """Return the layers' linears whose paths match any glob pattern.

    Raises:
        ExciseError: A pattern matches nothing, or a matched layer is quantised.
    """
    linears = view.layer_linears()
    chosen: dict[str, nn.Linear] = {}
    for pattern in patterns:
        matched = [path for path in linears if fnmatch.fnmatchcase(path, pattern)]
        if not matched:
            raise ExciseError(
                f"pattern {pattern!r} matches no linear of the layers, which are named like "
                f"{', '.join(list(linears)[-2:])}"
            )
        chosen.update({path: linears[path] for path in matched})
    for path, linear in chosen.items():
        if type(linear).__name__ not in LINEAR:
            raise ExciseError(
                f"{path} is quantised ({type(linear).__name__}), so its weights have no relevance: "
                "score heads and neurons, or load the full weights (no --load-in-4bit / -8bit)"
            )
    return {path: linear for path, linear in linears.items() if path in chosen}
