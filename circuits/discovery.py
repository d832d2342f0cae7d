"""From scores to a circuit: as small as possible, as faithful as asked for."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from ..core.errors import ExciseError
from ..lrp.scope import Variant
from .faithfulness import Trial
from .levels import Ranking


Choice = Bool[Tensor, " components"]


def by_size(trial: Trial, ranking: Ranking, k: int) -> Choice:
    """Choose the k highest scores, less what has no effect alone (edges that lead nowhere).

    Raises:
        ExciseError: `k` is not between 1 and the number of components.
    """
    if not 1 <= k <= len(ranking):
        raise ExciseError(f"a circuit of {k} components: give a size from 1 to {len(ranking)}")
    return trial.tidy(ranking.top(k))


def by_faithfulness(trial: Trial, ranking: Ranking, target: float) -> Choice:
    """Choose the fewest top scores that reach a faithfulness: by doubling, then bisection.

    Faithfulness need not grow with size, so that what is found is the first size that reaches the
    target on this path, and one component less does not.

    Args:
        trial: Prompts to choose on; never those that the result is reported on.
        ranking: Of all components.
        target: Faithfulness to reach, such as 0.9.

    Raises:
        ExciseError: The target is not reached with all components, or out of range.
    """
    if not 0.0 < target <= 1.0:
        raise ExciseError(f"faithfulness is {target}: give a number above 0, up to 1")

    def reached(k: int) -> bool:
        return trial.value(by_size(trial, ranking, k)) >= target

    low, high = 0, 1
    while not reached(high):
        if high == len(ranking):
            raise ExciseError(
                f"not even all components reach faithfulness {target}: give a smaller one, or a "
                "--size"
            )
        low, high = high, min(2 * high, len(ranking))
    return by_size(trial, ranking, _bisect(low, high, reached))


def refine(
    trial: Trial,
    chosen: Choice,
    target: float,
    rules: Variant | None = "relp",
    rounds: int = 12,
    progress: bool = False,
) -> Choice:
    """Make a circuit smaller at the same faithfulness, greedily.

    Scores are taken anew where the circuit stands: the derivative of the answer by each
    component's gate in the circuit's own run, which says what a kept component still does there,
    and what another one would. Each round adds the most promising components, then takes out as
    many of the least useful as the target allows, and is undone if the circuit got no smaller.

    Args:
        trial: Prompts to choose on.
        chosen: A circuit that reaches the target.
        target: Faithfulness to keep.
        rules: Relevance rules of the gradients, or None.
        rounds: At most.
        progress: Whether to draw a progress bar on a terminal.

    Returns:
        A circuit of at most as many components.
    """
    best, share = chosen, 0.25
    with tqdm(total=rounds, desc="refining", disable=None if progress else True) as bar:
        for _ in range(rounds):
            n = int(best.sum())
            extra = max(1, round(share * n))
            gains = _gains(trial, best, rules).masked_fill(best, -torch.inf)
            wider = best | Ranking(gains).top(extra)
            found = _trimmed(trial, wider, target, rules)
            smaller = found is not None and int(found.sum()) < n
            bar.update()
            if smaller:
                assert found is not None
                best = found
                bar.set_postfix(size=int(best.sum()))
            elif share < 0.05 or extra == 1:
                break
            else:
                share /= 2
    return best


def _trimmed(trial: Trial, chosen: Choice, target: float, rules: Variant | None) -> Choice | None:
    """Take out the least useful components, a part at a time, as many as the target allows."""
    if trial.value(chosen) < target:
        return None
    while True:
        gains = _gains(trial, chosen, rules)
        order = gains.masked_fill(~chosen, torch.inf).argsort()
        n = int(chosen.sum())

        def without(k: int, chosen: Choice = chosen, order: Tensor = order) -> Choice:
            fewer = chosen.clone()
            fewer[order[:k]] = False
            return trial.tidy(fewer)

        # scores hold near where they were taken: at most a quarter goes before they are renewed
        most = max(1, n // 4)
        if n == 1 or trial.value(without(1)) < target:
            return chosen
        if trial.value(without(most)) >= target:
            k = most
        else:
            k = _bisect(1, most, lambda k, without=without: trial.value(without(k)) < target) - 1
        chosen = without(k)


def _gains(trial: Trial, chosen: Choice, rules: Variant | None) -> Float[Tensor, " components"]:
    kept = trial.level.kept(trial.shape, chosen)
    return trial.level.flat(trial.shape, trial.ablator.gate_gradients(kept, rules))


def _bisect(low: int, high: int, reached: Callable[[int], bool]) -> int:
    """Return the least number above `low` that reaches, given that `high` does and `low` not."""
    while high - low > 1:
        middle = (low + high) // 2
        if reached(middle):
            high = middle
        else:
            low = middle
    return high
