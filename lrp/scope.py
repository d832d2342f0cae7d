"""The LRP scope: a context manager that puts relevance rules on one model and takes them off."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import Function

from ..core.classes import kind_of
from ..core.errors import ExciseError, RuleNotFiredError
from ..core.families import Family, ModelView
from ..core.frozen import frozen
from ..core.held import held
from .attention import ACTIVE, AttentionRule, scoped_attention
from .rules import SLOPES, ActivationRule, EpsilonRule, NormRule, ShareRule, full_precision


Variant = Literal["attnlrp", "cp-lrp", "relp"]
VARIANTS: tuple[Variant, ...] = ("attnlrp", "cp-lrp", "relp")


def unreached(variant: Variant | None, family: Family) -> tuple[str, ...]:
    """Return the modules of a layer that no relevance gets to, whatever the model and the data.

    They feed only what CP-LRP holds constant: attention patterns, and the MLP's gate. Their scores
    are zero by definition, and rank nothing.

    Args:
        variant: Rules on the model; None is the plain gradient.
        family: Of the model.

    Returns:
        Paths relative to a decoder layer.
    """
    if variant != "cp-lrp":
        return ()
    return (*family.query_key, *(family.mlp_in[:1] if family.gated else ()))


@dataclass(frozen=True)
class RuleRecord:
    """One rule on one module, and how often a backward pass went through it."""

    module: str
    rule: str
    fired: int


@dataclass(frozen=True)
class Audit:
    """What happened inside a scope."""

    rules: tuple[RuleRecord, ...]
    layers: tuple[float, ...]
    """Relevance in the residual stream at the input of each layer, and after the last: sums over
    samples and positions. Equal to the explained value where nothing absorbs relevance (biases,
    the softmax and LayerNorm's mean do)."""

    @property
    def silent(self) -> tuple[RuleRecord, ...]:
        """Rules that no backward pass went through."""
        return tuple(record for record in self.rules if not record.fired)

    def __str__(self) -> str:
        count = Counter(record.rule for record in self.rules)
        rules = ", ".join(f"{rule} on {n} modules" for rule, n in count.items())
        return f"{rules}; relevance per layer: {' '.join(f'{r:.4g}' for r in self.layers)}"


_GATE = "constant gate"
"""The one rule that fires in the forward pass: nothing flows back through a constant."""

_OPEN: "WeakKeyDictionary[nn.Module, list[LRPScope]]" = WeakKeyDictionary()
"""The scopes of each model that is inside one; the last has its rules on."""


class LRPScope:
    """Put the rules of AttnLRP or CP-LRP on one model while the `with` block lasts.

    Inside, the model's outputs are bit-identical to those outside, dropout is off, parameters ask
    for no gradient, and a backward pass carries relevance: `x * x.grad` is the relevance of an
    activation `x`. Outside nothing is left, whatever happened inside. Other models are not
    affected. A second scope on the same model suspends the first until it closes; they may close in
    any order. A second thread is refused.

    Args:
        model: A causal language model of a supported family.
        variant: `attnlrp` (arXiv 2402.05602); `cp-lrp`, which holds attention patterns and
            MLP gates constant (Ali et al. 2022); or `relp`, rules for norms, activations and gates
            only, with the plain gradient of attention (arXiv 2508.21258).
        epsilon: Stabiliser of the linear layers, in units of their output; 0 is LRP-0.

    Raises:
        UnsupportedModelError: The family, or a module's class, has no rule.
        RuleNotFiredError: On leaving: relevance flowed, but not through every rule.
        ExciseError: On entering: another thread has the model in a scope, mask or edit.

    Example:
        with LRPScope(model) as scope:
            embedded = model.get_input_embeddings()(input_ids).detach().requires_grad_()
            model(inputs_embeds=embedded).logits[0, -1, answer].backward()
        relevance = (embedded * embedded.grad).sum(-1)
    """

    def __init__(self, model: Any, variant: Variant = "attnlrp", epsilon: float = 0.0):
        if variant not in VARIANTS:
            raise ExciseError(f"unknown variant {variant!r}: known are {', '.join(VARIANTS)}")
        if not 0.0 <= epsilon < float("inf"):
            raise ExciseError(f"epsilon is {epsilon}: give a finite number >= 0")
        self.view = ModelView.of(model)
        self.variant: Variant = variant
        self.epsilon = epsilon
        self._fired: Counter[tuple[str, str]] = Counter()
        self._residual: list[Tensor | None] = [None] * (len(self.view.layers) + 1)
        self._open = False
        self._undo, self._turn = ExitStack(), ExitStack()

    def __enter__(self) -> "LRPScope":
        with ExitStack() as turn:
            turn.enter_context(held(self.view.model))
            if self._open:
                raise ExciseError("this scope is open already: make a second LRPScope to nest one")
            self._turn = turn.pop_all()
        scopes = _OPEN.setdefault(self.view.model, [])
        if scopes:
            scopes[-1]._undo.close()
        scopes.append(self)
        self._open = True
        try:
            self._install()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        self._close()
        flowed = any(n for (_, rule), n in self._fired.items() if rule != _GATE)
        if exc_type is None and flowed:
            self.check()

    def audit(self) -> Audit:
        """Say which rule fired in which module, and how much relevance each layer keeps."""
        return Audit(
            rules=tuple(RuleRecord(*key, fired) for key, fired in self._fired.items()),
            layers=tuple(0.0 if total is None else total.item() for total in self._residual),
        )

    @property
    def residual(self) -> Tensor:
        """Relevance at each layer's input and after the last so far, float64 (layers + 1,)."""
        return torch.tensor(self.audit().layers, dtype=torch.float64)

    @residual.setter
    def residual(self, totals: Tensor) -> None:
        self._residual = list(totals)

    def check(self) -> None:
        """Raise if a rule never fired.

        Raises:
            RuleNotFiredError: Names the rules and modules that no relevance went through.
        """
        if silent := self.audit().silent:
            names = ", ".join(f"{record.rule} in {record.module}" for record in silent[:4])
            more = f" and {len(silent) - 4} more" if len(silent) > 4 else ""
            raise RuleNotFiredError(
                f"relevance went through no {names}{more}: the scores miss these rules; "
                "explain an output of the language-model head and keep gradients on"
            )

    def _close(self) -> None:
        """Take the rules off, and put those of the scope below on, if this was the innermost."""
        if not self._open:
            return
        self._open = False
        scopes = _OPEN[self.view.model]
        innermost = scopes[-1] is self
        scopes.remove(self)
        try:
            self._undo.close()
            if not scopes:
                del _OPEN[self.view.model]
            elif innermost:
                scopes[-1]._install()
        finally:
            self._turn.close()

    def _install(self) -> None:
        """Put frozen state, hooks and attention rules on the model; `_undo` takes them off."""
        with ExitStack() as undo:
            undo.enter_context(frozen(self.view))
            self._install_rules(undo)
            self._undo = undo.pop_all()

    def _install_rules(self, undo: ExitStack) -> None:
        view, constant = self.view, self.variant == "cp-lrp"
        paths = unreached(self.variant, view.family)
        skipped = {layer.module.get_submodule(path) for layer in view.layers for path in paths}

        def hook(handle: Any) -> None:
            undo.callback(handle.remove)

        for path, norm in view.modules("rms_norm", "rms_norm_plus_one", "layer_norm"):
            if norm in skipped:
                continue
            hook(norm.register_forward_hook(partial(_norm_hook, self._fire(path, "norm"))))
        for layer in view.layers:
            path = view.path(layer.activation)
            kind = kind_of(layer.activation) or ""
            if view.family.gated and constant:
                fire = self._fire(path, _GATE)
                hook(layer.activation.register_forward_hook(partial(_constant_hook, fire)))
            elif kind in SLOPES:
                rule = partial(_activation_hook, self._fire(path, "identity"), SLOPES[kind])
                hook(layer.activation.register_forward_hook(rule))
            if view.family.gated and not constant:
                fire = self._fire(view.path(layer.mlp_out), "half per factor")
                hook(layer.mlp_out.register_forward_pre_hook(partial(_half_hook, fire)))
            if self.variant == "relp":
                continue  # attention keeps its own gradient
            path = view.path(layer.attention)
            name = "constant pattern" if constant else "half per product"
            ACTIVE[layer.attention] = AttentionRule(constant, self._fire(path, name))
            undo.callback(ACTIVE.pop, layer.attention, None)
        if self.epsilon:
            for path, linear in view.modules("linear"):
                if linear in skipped:
                    continue
                fire = self._fire(path, "epsilon")
                hook(linear.register_forward_hook(partial(_epsilon_hook, fire, self.epsilon)))
        self._install_taps(undo)

    def _install_taps(self, undo: ExitStack) -> None:
        """Add up relevance in the residual stream; let attention modules ask for their rules."""
        layers, model = self.view.layers, self.view.model
        for index, layer in enumerate(layers):
            handle = layer.module.register_forward_pre_hook(partial(_residual_in, self, index))
            undo.callback(handle.remove)
        last = partial(_residual_out, self, len(layers))
        undo.callback(layers[-1].module.register_forward_hook(last).remove)
        undo.enter_context(scoped_attention(model))

    def _amount(self, x: Tensor, grad: Tensor) -> Tensor:
        """Return the relevance of an activation."""
        return torch.dot(full_precision(x).flatten(), full_precision(grad).flatten())

    def _fire(self, path: str, rule: str) -> Any:
        key = (path, rule)
        self._fired.setdefault(key, 0)

        def fire() -> None:
            self._fired[key] += 1

        return fire

    def _keep(self, index: int, amount: Tensor) -> None:
        total = self._residual[index]
        self._residual[index] = amount if total is None else total.to(amount) + amount


class _ResidualTap(Function):
    """Pass the residual stream through and add up its relevance on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scope: LRPScope, index: int):
        ctx.save_for_backward(x)
        ctx.scope, ctx.index = scope, index
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        (x,) = ctx.saved_tensors
        ctx.scope._keep(ctx.index, ctx.scope._amount(x, grads[0]))
        return grads[0], None, None


def flows(x: Tensor) -> bool:
    """Whether a backward pass can come by."""
    return torch.is_grad_enabled() and x.requires_grad


def norm_parameters(norm: Any) -> tuple[Tensor | None, float, bool]:
    """Return a norm's scale, its epsilon, and whether it subtracts the mean."""
    kind = kind_of(norm)
    if kind == "layer_norm":
        return norm.weight, norm.eps, True
    if kind == "rms_norm_plus_one":
        return 1.0 + full_precision(norm.weight), norm.eps, False
    return norm.weight, norm.variance_epsilon, False


def _norm_hook(fire: Any, norm: Any, args: tuple[Tensor, ...], y: Tensor) -> Any:
    if not flows(x := args[0]):
        return None
    return NormRule.apply(x, y.detach(), *norm_parameters(norm), fire)


def _activation_hook(fire: Any, slope: Any, _act: Any, args: tuple[Tensor, ...], y: Tensor) -> Any:
    return ActivationRule.apply(args[0], y.detach(), slope, fire) if flows(args[0]) else None


def _constant_hook(fire: Any, _act: Any, _args: Any, y: Tensor) -> Tensor | None:
    if not flows(y):
        return None
    fire()
    return y.detach()


def _half_hook(fire: Any, _linear: Any, args: tuple[Tensor, ...]) -> Any:
    return ShareRule.apply(args[0], 0.5, fire) if flows(args[0]) else None


def _epsilon_hook(fire: Any, epsilon: float, _linear: Any, _args: Any, z: Tensor) -> Any:
    return EpsilonRule.apply(z, epsilon, fire) if flows(z) else None


def _residual_in(scope: LRPScope, index: int, _layer: Any, args: tuple[Any, ...]) -> Any:
    return (_ResidualTap.apply(args[0], scope, index), *args[1:]) if flows(args[0]) else None


def _residual_out(scope: LRPScope, index: int, _layer: Any, _args: Any, output: Any) -> Any:
    if not isinstance(output, tuple):  # transformers 5
        return _ResidualTap.apply(output, scope, index)
    return (_ResidualTap.apply(output[0], scope, index), *output[1:])  # transformers 4
