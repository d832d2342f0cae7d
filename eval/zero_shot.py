"""Zero- and few-shot tasks of EleutherAI's lm-evaluation-harness (lm-eval) on the live model.

lm-eval asks, scores and aggregates; here its per-document values become columns, so that they get
intervals and paired tests, and each number is checked against lm-eval's own. No cache of lm-eval is
used: the one for responses does not look at the model, so an edited model would get the answers of
the model before the edit.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..core.bootstrap import Values
from ..core.errors import ExciseError, first_line
from ..core.loading import Loaded
from ..core.statistics import Statistic
from .lm_harness import SEED, contained, lent, load_task, require_lm_eval
from .outcome import Metric, Outcome, Plan, Row


OWN = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
"""What is kept of lm-eval's result as it is."""

BINARY = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
"""Metrics that are a yes or a no per document, unless a task redefines them."""

LINKS: Mapping[str, Mapping[str, Any]] = {
    "mean": {},
    "nanmean": {},
    "perplexity": {"link": "exp", "scale": -1.0},
    "weighted_perplexity": {"link": "exp", "scale": -1.0},
    "bits_per_byte": {"scale": -1 / math.log(2)},
}
"""lm-eval's aggregations that are a sum over documents, and how `Statistic` says them."""


@dataclass(frozen=True)
class ZeroShot(Metric):
    """One task of lm-eval; a unit is a document.

    The task's own rules hold: prompt, answers, metrics, and the number of examples shown.
    """

    task: str
    """A task's name; for a group, as mmlu, give each of its `lm_harness.leaf_tasks`."""
    include: Path | None = None
    """Folder with YAML files of further tasks; they may hold Python code, which runs."""
    fewshot: int | None = None
    """Examples shown before each question; by default what the task says, else none."""
    limit: int | None = None
    """Use only the first documents."""
    batch_size: int = 8
    max_length: int | None = None
    """Most tokens the model reads at once; by default as many as it can."""
    name: str = field(init=False)

    def __post_init__(self):
        require_lm_eval()
        object.__setattr__(self, "name", f"zero_shot.{self.task}")
        for key, least in {"fewshot": 0, "limit": 1, "batch_size": 1, "max_length": 2}.items():
            if (value := getattr(self, key)) is not None and value < least:
                raise ExciseError(f"{key} is {value}: give at least {least}")
        if self.include is not None and not Path(self.include).is_dir():
            raise ExciseError(f"no folder at {self.include}: give one with task YAML files")

    def plan(self, loaded: Loaded) -> Plan:
        """Build the task and read its documents.

        Raises:
            ExciseError: An unknown task, a group of tasks, data that cannot be had, or a number of
                examples that the task would ignore.
        """
        with contained():
            task = load_task(self.task, self.include)
            shots = self._set_shots(task)
            documents = [_text(document) for _, document in task.doc_iterator(limit=self.limit)]
            config = _plain(task.dump_config())
        longest = len(loaded.tokenizer(max(documents, key=len), verbose=False)["input_ids"])
        most = self.max_length or getattr(loaded.model.config, "max_position_embeddings", 2048)
        cut = f", at most {self.max_length} tokens" if self.max_length else ""
        return Plan(
            protocol=f"lm-eval {version('lm_eval')}: {self.task} version {task.VERSION}, "
            f"{task.OUTPUT_TYPE}, {shots}-shot, no chat template{cut}",
            units=tuple(_hash(document) for document in documents),
            inputs=(task,),
            identity={
                "lm_eval": version("lm_eval"),
                "config": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
                "shots": shots,
                "seed": SEED,
                "max_length": self.max_length,
            },
            tokens=self.batch_size * min(longest * (shots + 1), most),
        )

    def _set_shots(self, task: Any) -> int:
        """Set the number of examples as lm-eval does, but refuse what it would ignore."""
        own = task.get_config("num_fewshot")
        if self.fewshot and (own == 0 or task.OUTPUT_TYPE == "loglikelihood_rolling"):
            raise ExciseError(f"task {self.task!r} shows no examples: leave fewshot out")
        shots = (own or 0) if self.fewshot is None or own == 0 else self.fewshot
        task.set_config("num_fewshot", shots)
        return shots

    def rows(
        self, loaded: Loaded, plan: Plan, todo: Sequence[int], progress: bool
    ) -> Iterator[tuple[int, Row]]:
        """Run the task, all of it at once, then give the rows.

        The first document's row holds lm-eval's own result as well.

        Raises:
            ExciseError: lm-eval fails, or a log-likelihood is NaN or infinite.
        """
        if not todo:
            return
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        (task,) = plan.inputs
        with contained(progress) as cuts, lent(loaded.model):
            wrapped: Any = HFLM  # its decorator hides its arguments
            try:
                harness = wrapped(
                    pretrained=loaded.model,
                    tokenizer=deepcopy(loaded.tokenizer),  # it may get a padding token
                    batch_size=self.batch_size,
                    max_length=self.max_length,
                )
                task.set_fewshot_seed(SEED)
                found: Any = evaluate(
                    harness,
                    {self.task: task},
                    limit=self.limit,
                    cache_requests=False,
                    bootstrap_iters=0,
                    log_samples=True,
                )
            except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
                _check_finite(task, self.name)  # the likely reason, and a better message
                raise ExciseError(f"lm-eval failed on {self.task}: {first_line(error)}") from error
        _check_finite(task, self.name)
        own = {part: found[part][self.task] for part in OWN}
        links = _aggregations(task, own["results"])
        rows: list[Row] = [{} for _ in plan.units]
        for sample in found["samples"][self.task]:
            for key, aggregation in links.items():
                metric, used = _split(key)
                if used == sample["filter"] and metric in sample and aggregation in LINKS:
                    rows[sample["doc_id"]].update(_entries(_named(key), sample[metric]))
        rows[0]["harness"] = _plain({"lm_eval": own, "links": links, "cut": len(cuts)})
        yield from ((index, rows[index]) for index in todo)

    def outcomes(self, loaded: Loaded, plan: Plan, rows: Sequence[Row]) -> list[Outcome]:
        """Make one statistic of each of the task's metrics.

        Raises:
            ExciseError: A statistic is not the number that lm-eval reports, or no metric of the
                task is a mean over documents.
        """
        harness = rows[0]["harness"]
        own, statistics, rest = harness["lm_eval"], [], {}
        columns: dict[str, Values] = {}
        for key, aggregation in harness["links"].items():
            theirs, better = own["results"][key], own["higher_is_better"].get(_split(key)[0])
            if aggregation not in LINKS:
                rest[_named(key)] = theirs
                continue
            statistic, values = _statistic(_named(key), aggregation, better, rows)
            x, w = statistic.quotient(values)
            ours = float(statistic.linked(x.sum() / w.sum())) if w.any() else math.nan
            if isinstance(theirs, str) or not math.isclose(
                ours, theirs, rel_tol=1e-6, abs_tol=1e-9
            ):
                raise ExciseError(f"{self.name}: {key} is {ours} here and {theirs} in lm-eval")
            statistics.append(statistic)
            columns.update(values)
        if not statistics:
            raise ExciseError(
                f"task {self.task!r} has only metrics of all documents together "
                f"({', '.join(rest) or 'none'}), which have no interval: use lm-eval itself for it"
            )
        facts = {"lm_eval": own, "truncated_requests": harness["cut"], "without_interval": rest}
        made = tuple(statistics)
        return [Outcome(self.name, plan.protocol, made, plan.units, columns, facts)]


def _aggregations(task: Any, results: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of each metric's aggregation, by lm-eval's key `metric,filter`."""
    from lm_eval.api.registry import get_aggregation

    known = {name: get_aggregation(name) for name in LINKS}
    found = {}
    for key in results:
        metric, used = _split(key)
        if not used or f"{metric.removesuffix('_stderr')},{used}" in found:
            continue
        function = task.aggregation().get(metric, known["mean"])  # lm-eval's own fallback
        found[key] = next((name for name, known_as in known.items() if known_as is function), "?")
    return found


def _split(key: str) -> tuple[str, str]:
    """Split lm-eval's `metric,filter`; what is no metric has no filter."""
    metric, comma, used = key.rpartition(",")
    return (metric, used) if comma else (key, "")


def _named(key: str) -> str:
    """Return our name of `metric,filter`; the filter `none` goes without saying."""
    metric, used = _split(key)
    return metric if used == "none" else f"{metric}.{used}"


def _entries(name: str, value: Any) -> Row:
    """Return what a row keeps of a metric's value: a number, or a sum and what it is over."""
    if isinstance(value, tuple | list):
        above, below = value
        return {name: float(above), f"{name}.per": float(below)}
    return {} if math.isnan(value) else {name: float(value)}


def _statistic(
    name: str, aggregation: str, better: bool | None, rows: Sequence[Row]
) -> tuple[Statistic, dict[str, Values]]:
    """Make a metric's statistic and columns; a document without a value counts for nothing."""
    per = f"{name}.per"
    columns = {name: np.array([row.get(name, 0.0) for row in rows])}
    if any(per in row for row in rows):
        columns[per] = np.array([row.get(per, 0.0) for row in rows])
    elif any(name not in row for row in rows):
        columns[per] = np.array([float(name in row) for row in rows])
    binary = name.partition(".")[0] in BINARY and set(columns[name]) <= {0.0, 1.0}
    statistic = Statistic(
        name,
        name,
        per if per in columns else None,
        better="lower" if better is False else "higher",
        proportion=binary and per not in columns,
        within=(0, 1) if binary else (-math.inf, math.inf),
        **LINKS[aggregation],
    )
    return statistic, columns


def _check_finite(task: Any, name: str) -> None:
    """Refuse log-likelihoods that are no numbers: argmax would make an accuracy of them."""
    for instance in task.instances or ():
        for answer in instance.resps if task.OUTPUT_TYPE != "generate_until" else ():
            if not math.isfinite(answer[0] if isinstance(answer, tuple | list) else answer):
                raise ExciseError(
                    f"{name}: a log-likelihood is NaN or infinite: the model is broken, or its "
                    "--dtype too coarse"
                )


def _text(document: Any) -> str:
    """Write a document as lm-eval does before it hashes one."""
    from lm_eval.utils import handle_non_serializable

    return json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False)


def _hash(document: str) -> str:
    """Return the first digits of lm-eval's `doc_hash`."""
    from lm_eval.utils import hash_string

    return hash_string(document)[:16]


def _plain(value: Any) -> Any:
    """Return JSON values only: functions by their text without addresses, NaN by its name."""
    text = re.sub(r" at 0x[0-9a-f]+", "", json.dumps(value, default=str))
    return json.loads(text, parse_constant=str)
