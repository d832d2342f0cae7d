"""Ways to score components for circuits, behind one door."""

from dataclasses import dataclass
from typing import Literal

from ..core.errors import look_up
from ..lrp.scope import Variant


@dataclass(frozen=True)
class CircuitMethod:
    """One way to score."""

    name: str
    summary: str
    rules: Variant | None = None
    """Relevance rules on the backward pass; None leaves the plain gradient."""
    multipliers: bool = False
    """Whether prompt and counterfactual go through as one, under the rules of
    `excise.lrp.difference`, which share out the whole change of the answer. Needs `difference`;
    `rules` and `points` are not looked at."""
    difference: bool = True
    """Whether activations are taken less their counterfactual; needs counterfactual prompts."""
    contrast: Literal["gradient"] | None = "gradient"
    """What activations are multiplied with; None scores by their size."""
    points: tuple[float, ...] = ()
    """Points of the path from counterfactual (0) to clean (1) over which gradients are averaged;
    none means at the clean prompt."""
    path: Literal["embeddings", "activations"] = "embeddings"
    """What goes along the path: token embeddings, once for all components, or what one layer's
    heads or MLP write, once for each."""
    exact: bool = False
    """Whether components are really replaced, one at a time."""
    random: bool = False


_MIDPOINTS = (1 / 6, 1 / 2, 5 / 6)
_EAP_IG_POINTS = (0.0, 0.2, 0.4, 0.6, 0.8)

CIRCUIT_METHODS: dict[str, CircuitMethod] = {
    method.name: method
    for method in (
        CircuitMethod(
            "lrp",
            "AttnLRP relevance (arXiv 2402.05602); needs no counterfactual",
            rules="attnlrp",
            difference=False,
        ),
        CircuitMethod(
            "lrp-difference",
            "AttnLRP coefficients times the difference to the counterfactual",
            rules="attnlrp",
        ),
        CircuitMethod(
            "relp", "RelP: LRP in attribution patching (arXiv 2508.21258)", rules="relp"
        ),
        CircuitMethod(
            "deeplift",
            "relevance of the whole change from counterfactual to prompt, without a rest "
            "(arXiv 1704.02685; for norms, gates and attention: this project)",
            multipliers=True,
        ),
        CircuitMethod(
            "relp-ig",
            "RelP with coefficients averaged over the 5 points of EAP-IG",
            rules="relp",
            points=_EAP_IG_POINTS,
        ),
        CircuitMethod(
            "relp-ig-activations",
            "RelP averaged over 3 points of each layer's own path; a backward pass for each",
            rules="relp",
            points=_MIDPOINTS,
            path="activations",
        ),
        CircuitMethod(
            "eap-ig-activations",
            "plain gradient averaged over 3 points of each layer's own path (arXiv 2504.13151)",
            points=_MIDPOINTS,
            path="activations",
        ),
        CircuitMethod(
            "cp-lrp-difference",
            "as lrp-difference, with constant attention patterns",
            rules="cp-lrp",
        ),
        CircuitMethod("eap", "attribution patching: plain gradient x change (arXiv 2310.10348)"),
        CircuitMethod(
            "eap-ig",
            "EAP with gradients averaged over 5 points between the two embeddings "
            "(arXiv 2403.17806)",
            points=_EAP_IG_POINTS,
        ),
        CircuitMethod(
            "gradient-x-activation", "plain gradient times activation", difference=False
        ),
        CircuitMethod("patching", "exact activation patching: one pass per component", exact=True),
        CircuitMethod("activation-norm", "Euclidean norm over positions", contrast=None,
                      difference=False),
        CircuitMethod("random", "seeded normal numbers: the control", random=True,
                      difference=False),
    )
}  # fmt: skip
"""Every method by name; the command line, `excise ls circuit-methods` and tests read this table."""


def get_method(name: str) -> CircuitMethod:
    """Return a method by name.

    Raises:
        ExciseError: No method has this name.
    """
    return look_up("circuit method", name, CIRCUIT_METHODS)
