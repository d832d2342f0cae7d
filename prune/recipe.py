"""How a model is pruned, in one value; and the recipes that are worth a name."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from ..core.errors import ExciseError, look_up, unknown_name
from .criteria import CRITERIA, get_criterion
from .scopes import Scope, count_gone, parse_scope


Order = Literal["oneshot", "sequential"]
Update = Literal["none", "obs", "admm"]
Unit = Literal["row", "matrix"]

SPARSEGPT = "sparsegpt"
"""The one criterion that is no score: it chooses while it updates."""
OWL = "owl"
"""The one budget that is no global mask: outlier ratios."""


@dataclass(frozen=True)
class Recipe:
    """How a model is pruned: what is cut, by which score, in which order, and what is mended.

    Raises:
        ExciseError: A word that is not known, a number out of range, or parts that exclude each
            other.
    """

    sparsity: float = 0.5
    """Share of the weights in the decoder layers' linears that goes; N:M scopes have their own."""
    criterion: str = "wanda"
    """A name of `CRITERIA`, or `sparsegpt`."""
    scope: str = "row"
    """Among which weights scores compete; see `SCOPES`."""
    order: Order = "sequential"
    """`oneshot`: calibrated on the dense model. `sequential`: each layer on what the pruned layers
    before it give it. Gradients are of the whole model, so they are of the dense one unless
    `rescore` says otherwise."""
    update: Update = "none"
    """What happens to the weights that stay."""
    budget: str | None = None
    """Whose global mask decides how much each unit loses: a criterion, or `owl`; None: all equal.
    """
    budget_unit: Unit = "row"
    floor: float = 0.0
    """Least sparsity of a matrix that a budget or a global scope may give."""
    ceiling: float = 1.0
    """Highest."""
    rescore: int = 0
    """Layers after which gradients are taken again, on the model as pruned so far; 0: never."""
    steps: int = 1
    """Rounds of an iterative schedule, each from the model the one before left."""
    iterations: int = 20
    """Of ADMM."""
    damping: float | None = None
    """Of the update; None takes its own default."""
    tune: int = 0
    """Passes over the calibration samples, after everything else, that fit scales and biases to
    the dense model's predictions; see `tune`."""

    def __post_init__(self):
        if self.criterion != SPARSEGPT:
            get_criterion(self.criterion)
        if self.budget not in (None, OWL, *CRITERIA):
            raise unknown_name("budget", str(self.budget), (OWL, *CRITERIA))
        for name, kind in (("order", Order), ("update", Update)):
            if getattr(self, name) not in get_args(kind):
                raise unknown_name(name, getattr(self, name), get_args(kind))
        if self.budget_unit not in get_args(Unit):
            raise unknown_name("budget unit", self.budget_unit, get_args(Unit))
        count_gone(self.sparsity, 1)
        if self.sparsity == 1.0:
            raise ExciseError("sparsity is 1.0, which leaves no model: give less, as in 0.5")
        for name, least in (("rescore", 0), ("steps", 1), ("iterations", 1), ("tune", 0)):
            if getattr(self, name) < least:
                raise ExciseError(f"{name} is {getattr(self, name)}: give at least {least}")
        if self.damping is not None and not 0 <= self.damping <= 1:
            raise ExciseError(f"damping is {self.damping}: give a share of the diagonal, 0 to 1")
        self._check_parts(parse_scope(self.scope))
        self._check_effect(parse_scope(self.scope))

    def _check_parts(self, scope: Scope) -> None:
        """Refuse parts that exclude each other."""
        if scope.kind in ("n:m", "block", "global") and self.budget:
            raise ExciseError(
                f"scope {self.scope} leaves nothing to a budget: use scope row or layer, or none"
            )
        if scope.kind == "n:m" and self.steps > 1:
            raise ExciseError(f"scope {self.scope} is reached in one step: leave --steps out")
        if self.criterion == SPARSEGPT:
            if scope.kind not in ("layer", "n:m"):
                raise ExciseError(
                    "sparsegpt chooses among columns: use scope layer, or N:M as in 2:4"
                )
            if self.update != "none" or self.steps > 1:
                raise ExciseError(
                    "sparsegpt updates as it chooses, at once: no --update, no --steps"
                )
        if self.budget_unit == "row" and self.budget == OWL:
            raise ExciseError("owl gives each layer one sparsity: use --budget-unit matrix")
        if self.budget_unit == "row" and self.budget and self.criterion == SPARSEGPT:
            raise ExciseError("sparsegpt has no rows of its own: use --budget-unit matrix")
        if not 0 <= self.floor <= self.goal / self.steps or not self.goal <= self.ceiling <= 1:
            raise ExciseError(
                f"floor {self.floor} and ceiling {self.ceiling} do not hold the sparsity "
                f"{self.goal:g}" + (f" in {self.steps} steps" if self.steps > 1 else "")
            )

    def _check_effect(self, scope: Scope) -> None:
        """Refuse fields that would change nothing, so that no recipe says more than it does."""
        if self.rescore and self.order == "oneshot":
            raise ExciseError("--rescore needs --order sequential: one-shot scores once")
        if (self.floor > 0 or self.ceiling < 1) and not self.budget and scope.kind != "global":
            raise ExciseError("--floor and --ceiling bound a --budget or scope global: give one")
        if self.damping is not None and not self.updates:
            raise ExciseError("--damping is for an update: give --update obs or admm")

    @property
    def goal(self) -> float:
        """The share that goes: N:M has its own."""
        scope = parse_scope(self.scope)
        if scope.kind == "n:m" and scope.size:
            return 1 - scope.size[0] / scope.size[1]
        return self.sparsity

    @property
    def fixed(self) -> bool:
        """Whether the scope has a sparsity of its own: N:M."""
        return parse_scope(self.scope).kind == "n:m"

    @property
    def updates(self) -> bool:
        """Whether weights that stay change."""
        return self.update != "none" or self.criterion == SPARSEGPT

    @property
    def sees_inputs(self) -> bool:
        """Whether layers are passed one at a time, to see what their linears read."""
        if self.updates:
            return True
        needs = get_criterion(self.criterion).needs
        return "input_square" in needs and parse_scope(self.scope).kind != "global"

    def damp(self, default: float) -> float:
        """Return the damping of an update, which has its own default."""
        return default if self.damping is None else self.damping

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        """What differs from the plain one, as in `sparsity=0.5 criterion=fisher scope=global`."""
        plain = Recipe()
        shown = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if field.name in ("sparsity", "criterion", "scope", "order", "update")
            or getattr(self, field.name) != getattr(plain, field.name)
        ]
        return " ".join(shown)


_WANDA = Recipe()
RECIPES: dict[str, Recipe] = {
    "best": Recipe(budget="fisher", update="admm", tune=2),
    "best-update": Recipe(budget="fisher", update="admm"),
    "best-mask": Recipe(criterion="wanda-fisher", budget="fisher-factored"),
    "wanda": _WANDA,
    "sparsegpt": Recipe(criterion=SPARSEGPT, scope="layer"),
    "owl": Recipe(budget=OWL, budget_unit="matrix"),
    "owl-sparsegpt": Recipe(criterion=SPARSEGPT, scope="layer", budget=OWL, budget_unit="matrix"),
    "ria": Recipe(criterion="ria"),
    "magnitude": Recipe(criterion="magnitude", scope="layer", order="oneshot"),
    "random": Recipe(criterion="random", order="oneshot"),
    "gradient-x-weight": Recipe(criterion="gradient-x-weight", order="oneshot"),
    "fisher": Recipe(criterion="fisher", scope="global", order="oneshot"),
    "lrp": Recipe(criterion="lrp", order="oneshot"),
    "lrp-global": Recipe(criterion="lrp", scope="global", order="oneshot"),
    "lrp-budget": Recipe(criterion="wanda-lrp", budget="lrp"),
    "wanda-admm": replace(_WANDA, update="admm"),
}
"""Recipes by name, at 50 %; the command line, `--compare` and the tests read this table."""


def get_recipe(name: str, **changes: Any) -> Recipe:
    """Return a recipe by name, with fields changed.

    Raises:
        ExciseError: No recipe has this name, or as `Recipe`.
    """
    return replace(look_up("recipe", name, RECIPES), **changes)


def recipe_with(recipe: str | Recipe, sparsity: float | None = None, **changes: Any) -> Recipe:
    """Return a recipe with a sparsity and with fields changed, and what follows from the changes.

    A budget `owl` has no unit but the matrix, and a scope that fixes counts (N:M, blocks, global)
    leaves nothing to a budget, so it drops the recipe's own.

    Args:
        recipe: A name of `RECIPES`, or a recipe.
        sparsity: Share of the weights that goes; None leaves the recipe's.
        changes: Fields of `Recipe`; `budget="none"` is no budget.

    Raises:
        ExciseError: An unknown name or field, as `Recipe`, or a sparsity that the scope excludes.
    """
    if unknown := sorted(changes.keys() - {field.name for field in fields(Recipe)}):
        raise unknown_name("field of a recipe", unknown[0], [f.name for f in fields(Recipe)])
    if changes.get("budget") == OWL:
        changes.setdefault("budget_unit", "matrix")
    fixed_counts = changes.get("scope", "row") not in ("row", "layer")
    if changes.get("budget") == "none" or (fixed_counts and "budget" not in changes):
        changes["budget"] = None
    if sparsity is not None:
        changes["sparsity"] = sparsity
    start = recipe if isinstance(recipe, Recipe) else get_recipe(recipe)
    found = replace(start, **changes)
    if sparsity is not None and found.fixed and sparsity != found.goal:
        raise ExciseError(
            f"scope {found.scope} cuts {found.goal:g}, not {sparsity:g}: leave `sparsity` out"
        )
    return found
