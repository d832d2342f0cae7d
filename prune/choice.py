"""What each matrix may keep, as far as the whole model decides it: global masks and budgets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..core.errors import ExciseError
from ..core.families import LayerView, ModelView
from .budgets import outlier_ratio, owl_budgets
from .criteria import get_criterion
from .packed import PackedMasks
from .recipe import OWL, SPARSEGPT, Recipe
from .scopes import Scope, count_gone, gone_global, keep_but, keep_with_rows, parse_scope
from .statistics import LinearStatistics


@dataclass(frozen=True)
class Choice:
    """What is settled before the layers are passed, by path of the linear."""

    shares: Mapping[str, float] = field(default_factory=dict)
    """Sparsity of each matrix."""
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    """What each row keeps, where budgets are of rows."""
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    """The mask itself, where the scope is global."""

    def keep(self, scope: Scope, path: str, scores: Tensor) -> Tensor:
        """Return the mask of one matrix, given its scores."""
        if path in self.rows:
            return keep_with_rows(scores, self.rows[path])
        return scope.keep(scores, self.shares[path])


def linears_of(layer: LayerView, view: ModelView) -> dict[str, nn.Linear]:
    """Return the linears of one decoder layer by path, in model order."""
    return {
        path: linear
        for path, linear in view.layer_linears().items()
        if path.startswith(f"{layer.path}.")
    }


def check_fit(recipe: Recipe, view: ModelView) -> None:
    """Refuse a pattern that does not tile every matrix, before anything is computed.

    Raises:
        ExciseError: Names the matrix.
    """
    scope = parse_scope(recipe.scope)
    shapes = [linear.weight.shape for linear in view.layer_linears().values()]
    apart = [shape[-1] if scope.kind == "row" else shape.numel() for shape in shapes]
    most = sum(apart) if recipe.budget or scope.kind == "global" else max(apart)
    if recipe.goal > 0 and count_gone(recipe.goal, most) == 0:
        raise ExciseError(
            f"sparsity {recipe.goal:g} cuts no weight: ask for more than {0.5 / most:.2g}, or for 0"
        )
    if scope.size is None:
        return
    high, wide = (1, scope.size[1]) if scope.kind == "n:m" else scope.size
    for path, linear in view.layer_linears().items():
        rows, columns = linear.weight.shape
        if rows % high or columns % wide:
            raise ExciseError(
                f"scope {recipe.scope} does not tile {path}, which is {rows} x {columns}: give one "
                "that does, or row"
            )


def survey_needs(recipe: Recipe) -> set[str]:
    """Return the statistics that have to be gathered from the whole model."""
    needs: set[str] = set()
    if recipe.budget == OWL:
        needs.add("input_square")
    elif recipe.budget:
        needs.update(get_criterion(recipe.budget).needs)
    if recipe.criterion != SPARSEGPT:
        own = get_criterion(recipe.criterion).needs
        whole = parse_scope(recipe.scope).kind == "global"
        needs.update(name for name in own if whole or name != "input_square")
    return needs - {"tokens", "name", "seed"}


def decide(
    recipe: Recipe,
    goal: float,
    layers: Sequence[LayerView],
    linears: Mapping[str, nn.Linear],
    statistics: Mapping[str, LinearStatistics],
    kept: Mapping[str, Tensor],
) -> Choice:
    """Settle what the whole model decides.

    Args:
        recipe: Its scope, budget, floor and ceiling are read.
        goal: Share of the weights of these layers that is to be gone afterwards.
        layers: Decoder layers that are still to be pruned.
        linears: Their linears by path.
        statistics: Of each linear, what `survey_needs` names.
        kept: What earlier steps left: what is gone stays gone.

    Raises:
        ExciseError: Bounds that the goal does not fit.
    """
    if recipe.budget == OWL:
        return Choice(_owl(recipe, goal, layers, linears, statistics))
    whole = parse_scope(recipe.scope).kind == "global"
    criterion = recipe.criterion if whole else recipe.budget
    if criterion is None:
        return Choice(dict.fromkeys(linears, goal))
    scores = _Scores(criterion, linears, statistics, kept)
    gone = gone_global(scores, goal, recipe.floor, recipe.ceiling)
    if not whole and recipe.budget_unit == "matrix":
        return Choice({path: gone[path] / linears[path].weight.numel() for path in linears})
    masks, rows = PackedMasks(), {}
    for path in linears:  # one at a time: together they are as large as a quarter of the weights
        mask = keep_but(scores[path], gone[path])
        if whole:
            masks[path] = mask
        else:
            rows[path] = mask.sum(1)
    return Choice(rows=rows, masks=masks)


class _Scores(Mapping[str, Tensor]):
    """Scores of all matrices, computed when asked for, on one scale; what is gone is lowest.

    Criteria whose scores do not mean the same in two matrices are divided by their mean size in
    each: LRP shrinks from layer to layer, and its quarter for queries and keys within one.
    """

    def __init__(
        self,
        criterion: str,
        linears: Mapping[str, nn.Linear],
        statistics: Mapping[str, LinearStatistics],
        kept: Mapping[str, Tensor],
    ):
        self.criterion, self.linears = get_criterion(criterion), linears
        self.statistics, self.kept = statistics, kept
        self.scale = dict.fromkeys(linears, 1.0)
        if not self.criterion.comparable:
            for path in linears:
                self.scale[path] = float(self._raw(path).abs().mean(dtype=torch.float64)) or 1.0

    def _raw(self, path: str) -> Tensor:
        return self.criterion.score(self.linears[path].weight, self.statistics[path])

    def __getitem__(self, path: str) -> Tensor:
        scores = self._raw(path) / self.scale[path]
        return scores.masked_fill_(~self.kept[path].to(scores.device), -torch.inf)

    def __iter__(self) -> Iterator[str]:
        return iter(self.linears)

    def __len__(self) -> int:
        return len(self.linears)


def _owl(
    recipe: Recipe,
    goal: float,
    layers: Sequence[LayerView],
    linears: Mapping[str, nn.Linear],
    statistics: Mapping[str, LinearStatistics],
) -> dict[str, float]:
    """Return OWL's sparsities: one for all matrices of a decoder layer."""
    wanda = get_criterion("wanda")
    ratios, sizes, members = {}, {}, {}
    for layer in layers:
        mine = [path for path in linears if path.startswith(f"{layer.path}.")]
        scores = [wanda.score(linears[path].weight, statistics[path]) for path in mine]
        ratios[layer.path] = outlier_ratio(scores)
        sizes[layer.path] = sum(linears[path].weight.numel() for path in mine)
        members[layer.path] = mine
    shares = owl_budgets(ratios, sizes, goal, floor=recipe.floor, ceiling=recipe.ceiling)
    return {path: shares[layer] for layer, mine in members.items() for path in mine}
