"""Tasks of lm-eval on live models, against plain loops and lm-eval's own entry point."""

import json
import logging
import math
import random
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from excise.core.errors import ExciseError
from excise.core.loading import Loaded
from excise.eval import lm_harness as harness
from excise.eval.lm_harness import contained, leaf_tasks
from excise.eval.outcome import Outcome
from excise.eval.zero_shot import ZeroShot


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("lm_eval")

WORDS = ("Mary", "John", "gave", "the", "book", "to", "and", "cat", "sat", "on", "mat")

CHOICE = """\
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metrics}]
metadata: {{version: 3}}
"""

ROLLING = """\
task: tiny_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rolling.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
"""

GENERATE = """\
task: tiny_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rolling.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "Mary"
generation_kwargs: {{until: ["."], max_gen_toks: 4, do_sample: true, temperature: 1.0}}
filter_list:
  - {{name: all, filter: [{{function: take_first}}]}}
  - name: first
    filter: [{{function: regex, regex_pattern: "(Mary)"}}, {{function: take_first}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""

MEANS = "{{metric: {0}, aggregation: mean, higher_is_better: true}}".format
TOGETHER = "{{metric: {0}, aggregation: {1}, higher_is_better: true}}".format


def some(draw: random.Random, n: int) -> str:
    return " ".join(draw.choices(WORDS, k=n))


@pytest.fixture(scope="module", autouse=True)
def dataset_cache(tmp_path_factory: pytest.TempPathFactory):
    from datasets import config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a task of choices, one of whole texts, and a group."""
    folder, draw = tmp_path_factory.mktemp("tasks"), random.Random(5)
    choices = [
        {"question": some(draw, draw.randint(2, 9)), "gold": draw.randrange(3),
         "choices": [some(draw, draw.randint(1, 3)) for _ in range(3)]}
        for _ in range(24)
    ]  # fmt: skip
    texts = [{"text": some(draw, n)} for n in (3, 40, 17, 70, 1)]
    for name, rows in (("choice", choices), ("rolling", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = CHOICE.format(folder=folder, metrics=f"{MEANS('acc')}, {MEANS('acc_norm')}")
    (folder / "choice.yaml").write_text(both)
    mcc = TOGETHER("mcc", "matthews_corrcoef")
    for name, metrics in {"mcc": f"{mcc}, {MEANS('acc')}", "only": mcc,
                          "f1": TOGETHER("f1", "f1")}.items():  # fmt: skip
        text = CHOICE.format(folder=folder, metrics=metrics)
        (folder / f"{name}.yaml").write_text(text.replace("tiny_choice", f"tiny_{name}"))
    shots = both.replace("tiny_choice", "tiny_zero") + "num_fewshot: 0\n"
    (folder / "zero.yaml").write_text(shots)
    (folder / "rolling.yaml").write_text(ROLLING.format(folder=folder))
    (folder / "generate.yaml").write_text(GENERATE.format(folder=folder))
    (folder / "group.yaml").write_text("group: tiny_group\ntask: [tiny_choice, tiny_rolling]\n")
    gone = both.replace("tiny_choice", "tiny_gone").replace("choice.jsonl", "gone.jsonl")
    (folder / "gone.yaml").write_text(gone)
    hub = "task: tiny_hub\ndataset_path: nobody/nothing\ntest_split: test\n"
    (folder / "hub.yaml").write_text(hub + "output_type: multiple_choice\n")
    return folder


def run(metric: ZeroShot, model: Any, tokenizer: Any) -> Outcome:
    loaded = Loaded(model, tokenizer, "tiny")
    plan = metric.plan(loaded)
    rows = dict(metric.rows(loaded, plan, range(len(plan.units)), progress=False))
    kept = json.loads(json.dumps([rows[i] for i in range(len(plan.units))]))  # as from a cache
    return metric.outcomes(loaded, plan, kept)[0]


def log_likelihood(model: Any, head: list[int], tail: list[int]) -> float:
    with torch.no_grad():
        scores = model(torch.tensor([head + tail])).logits[0].double().log_softmax(-1)
    return sum(float(scores[len(head) + i - 1, token]) for i, token in enumerate(tail))


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_accuracy_equals_a_plain_loop(
    tiny: Callable[..., Any], tiny_tokenizer: Any, tasks: Path, kind: str
):
    model = tiny(kind)
    found = run(ZeroShot("tiny_choice", tasks, batch_size=5), model, tiny_tokenizer)
    right, right_norm = [], []
    for line in (tasks / "choice.jsonl").read_text().splitlines():
        row = json.loads(line)
        head = tiny_tokenizer(row["question"])["input_ids"]
        tails = [
            tiny_tokenizer(choice, add_special_tokens=False)["input_ids"]
            for choice in row["choices"]
        ]
        scores = [log_likelihood(model, head, tail) for tail in tails]
        lengths = [len(choice) for choice in row["choices"]]
        right.append(np.argmax(scores) == row["gold"])
        right_norm.append(np.argmax(np.array(scores) / lengths) == row["gold"])
    assert found.columns["acc"].tolist() == right
    assert found.columns["acc_norm"].tolist() == right_norm
    assert found.headline.value == pytest.approx(sum(right) / 24)
    acc = found.statistics[0]
    assert (acc.name, acc.better, acc.proportion) == ("acc", "higher", True)
    assert 0 < sum(right) < 24
    assert found.headline.ci[0] < found.headline.value < found.headline.ci[1]
    assert len(set(found.units)) == len(found.units) == 24
    assert not found.texts
    assert "tiny_choice version 3, multiple_choice, 0-shot" in found.protocol


def test_sampled_answers_under_two_filters(tiny_llama: Any, tiny_tokenizer: Any, tasks: Path):
    with torch.no_grad():
        tiny_llama.lm_head.weight *= 0.02  # nearly every word may follow
        tiny_llama.lm_head.weight[tiny_tokenizer.convert_tokens_to_ids("Mary")] += 0.1
    metric = ZeroShot("tiny_generate", tasks)
    found = run(metric, tiny_llama, tiny_tokenizer)
    own = found.facts["lm_eval"]["results"]
    assert [s.name for s in found.statistics] == ["exact_match.all", "exact_match.first"]
    assert all(statistic.proportion for statistic in found.statistics)
    assert found.measures["exact_match.first"].value == own["exact_match,first"]
    torch.manual_seed(7)
    assert run(metric, tiny_llama, tiny_tokenizer).facts == found.facts


@pytest.mark.parametrize("max_length", [None, 16])
def test_rolling_equals_lm_eval_and_a_plain_loop(
    tiny_llama: Any, tiny_tokenizer: Any, tasks: Path, max_length: int | None
):
    metric = ZeroShot("tiny_rolling", tasks, batch_size=2, max_length=max_length)
    found = run(metric, tiny_llama, tiny_tokenizer)
    own = found.facts["lm_eval"]["results"]
    for statistic in found.statistics:
        theirs = own[f"{statistic.name},none"]
        assert found.measures[statistic.name].value == pytest.approx(theirs, rel=1e-6)
        assert statistic.better == "lower"
        assert not statistic.proportion
    assert [s.name for s in found.statistics] == [
        "word_perplexity", "byte_perplexity", "bits_per_byte"]  # fmt: skip
    if max_length is None:
        texts = [json.loads(x)["text"] for x in (tasks / "rolling.jsonl").read_text().splitlines()]
        loss = -sum(log_likelihood(tiny_llama, [1], tiny_tokenizer(x)["input_ids"]) for x in texts)
        expected = math.exp(loss / sum(len(text.split()) for text in texts))
        assert found.headline.value == pytest.approx(expected, rel=1e-5)


def test_numbers_are_those_of_simple_evaluate(
    tiny_opt: Any, tiny_tokenizer: Any, tasks: Path, monkeypatch: pytest.MonkeyPatch
):
    from lm_eval import evaluator
    from lm_eval import tasks as lm_tasks
    from lm_eval.models.huggingface import HFLM

    found = run(ZeroShot("tiny_choice", tasks, fewshot=2, limit=7), tiny_opt, tiny_tokenizer)
    monkeypatch.setattr(evaluator, "add_env_info", lambda _: None)  # seconds of subprocesses
    with contained():
        wrapped: Any = HFLM
        expected: Any = evaluator.simple_evaluate(
            wrapped(pretrained=tiny_opt, tokenizer=deepcopy(tiny_tokenizer), batch_size=3),
            tasks=["tiny_choice"],
            num_fewshot=2,
            limit=7,
            bootstrap_iters=0,
            task_manager=lm_tasks.TaskManager(include_path=str(tasks), include_defaults=False),
        )
    own = found.facts["lm_eval"]
    assert own["results"] == expected["results"]["tiny_choice"]
    assert own["n-shot"] == expected["n-shot"]["tiny_choice"] == 2
    assert own["n-samples"] == {"original": 24, "effective": 7}
    assert own["higher_is_better"] == {"acc": True, "acc_norm": True}
    assert "2-shot" in found.protocol
    hashes = [sample["doc_hash"][:16] for sample in expected["samples"]["tiny_choice"]]
    assert list(found.units) == hashes
    again = run(ZeroShot("tiny_choice", tasks, fewshot=2, limit=7), tiny_opt, tiny_tokenizer)
    assert again.facts == found.facts


def test_no_cache_answers_for_another_model(
    tiny: Callable[..., Any],
    tiny_tokenizer: Any,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from lm_eval.caching import cache

    monkeypatch.setattr(cache, "PATH", str(tmp_path / "lm_eval"))
    monkeypatch.chdir(tmp_path)
    metric = ZeroShot("tiny_rolling", tasks)
    first, second = (run(metric, tiny("llama-gqa", seed), tiny_tokenizer) for seed in (0, 1))
    assert first.units == second.units
    assert not np.allclose(first.columns["word_perplexity"], second.columns["word_perplexity"])
    again = run(metric, tiny("llama-gqa", 0), tiny_tokenizer)
    assert np.array_equal(first.columns["word_perplexity"], again.columns["word_perplexity"])
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_changes(
    tiny_llama: Any, tiny_tokenizer: Any, tasks: Path, capfd: pytest.CaptureFixture[str]
):
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.pad_token = None
    tiny_llama.lm_head.weight = torch.nn.Parameter(tiny_llama.lm_head.weight + 1)  # an edit unties
    tiny_llama.train()
    tiny_llama.model.norm.eval()
    modes = [module.training for module in tiny_llama.modules()]
    attributes = set(vars(tiny_llama))
    weights = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    loggers = {name: logging.getLogger(name) for name in (None, *harness.LIBRARIES)}
    before = {name: (log.level, log.propagate, log.handlers) for name, log in loggers.items()}
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(ZeroShot("tiny_choice", tasks), tiny_llama, tokenizer)
    assert not caught
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert {n: (log.level, log.propagate, log.handlers) for n, log in loggers.items()} == before
    assert [module.training for module in tiny_llama.modules()] == modes
    assert set(vars(tiny_llama)) == attributes
    assert all(torch.equal(v, weights[k]) for k, v in tiny_llama.state_dict().items())
    assert tiny_llama.lm_head.weight is not tiny_llama.model.embed_tokens.weight
    assert tokenizer.pad_token is None
    assert capfd.readouterr() == ("", "")


def test_a_broken_model_has_no_accuracy(tiny_llama: Any, tiny_tokenizer: Any, tasks: Path):
    with torch.no_grad():
        tiny_llama.model.norm.weight[0] = float("nan")
    tiny_llama.train()
    for task in ("tiny_choice", "tiny_rolling"):
        with pytest.raises(ExciseError, match=f"zero_shot.{task}: a log-likelihood is NaN"):
            run(ZeroShot(task, tasks), tiny_llama, tiny_tokenizer)
    assert tiny_llama.training
    assert "tie_weights" not in vars(tiny_llama)


def test_metrics_of_all_documents_together_are_kept_apart(
    tiny_llama: Any, tiny_tokenizer: Any, tasks: Path
):
    found = run(ZeroShot("tiny_mcc", tasks), tiny_llama, tiny_tokenizer)
    assert [statistic.name for statistic in found.statistics] == ["acc"]
    own = found.facts["lm_eval"]["results"]
    assert found.facts["without_interval"] == {"mcc": own["mcc,none"]}
    with pytest.raises(ExciseError, match=r"only metrics of all documents together \(mcc\)"):
        run(ZeroShot("tiny_only", tasks), tiny_llama, tiny_tokenizer)
    with pytest.raises(ExciseError, match="lm-eval failed on tiny_f1: Target is multiclass"):
        run(ZeroShot("tiny_f1", tasks), tiny_llama, tiny_tokenizer)


def test_another_number_than_lm_evals_is_never_reported(
    tiny_llama: Any, tiny_tokenizer: Any, tasks: Path
):
    loaded, metric = Loaded(tiny_llama, tiny_tokenizer, ""), ZeroShot("tiny_choice", tasks, limit=2)
    results = {"acc,strict": 0.5}
    own = {"results": results, "higher_is_better": {"acc": True}}
    first = {"harness": {"lm_eval": own, "links": {"acc,strict": "mean"}, "cut": 0}}
    rows = [{**first, "acc.strict": 1.0}, {"acc.strict": 0.0}]
    (found,) = metric.outcomes(loaded, metric.plan(loaded), rows)
    assert [(s.name, s.proportion) for s in found.statistics] == [("acc.strict", True)]
    results["acc,strict"] = 0.75
    with pytest.raises(ExciseError, match=r"acc,strict is 0.5 here and 0.75 in lm-eval"):
        metric.outcomes(loaded, metric.plan(loaded), rows)


def test_a_document_without_a_value_counts_for_nothing(
    tiny_llama: Any, tiny_tokenizer: Any, tasks: Path
):
    loaded, metric = Loaded(tiny_llama, tiny_tokenizer, ""), ZeroShot("tiny_choice", tasks, limit=3)
    own = {"results": {"acc,none": 0.5}, "higher_is_better": {}}
    first = {"harness": {"lm_eval": own, "links": {"acc,none": "nanmean"}, "cut": 0}, "acc": 1.0}
    (found,) = metric.outcomes(loaded, metric.plan(loaded), [first, {"acc": 0.0}, {}])
    assert found.columns["acc.per"].tolist() == [1, 1, 0]
    assert not found.statistics[0].proportion


def test_rows_that_are_kept_are_not_computed_again(
    tiny_llama: Any, tiny_tokenizer: Any, tasks: Path, monkeypatch: pytest.MonkeyPatch
):
    from lm_eval import evaluator

    loaded, metric = Loaded(tiny_llama, tiny_tokenizer, ""), ZeroShot("tiny_choice", tasks, limit=4)
    plan = metric.plan(loaded)
    rows = dict(metric.rows(loaded, plan, range(4), progress=False))
    assert dict(metric.rows(loaded, plan, [2, 3], progress=True)) == {2: rows[2], 3: rows[3]}
    monkeypatch.setattr(evaluator, "evaluate", None)
    assert dict(metric.rows(loaded, plan, [], progress=False)) == {}


def test_a_cut_request_is_counted(tiny_llama: Any, tiny_tokenizer: Any, tasks: Path):
    found = run(ZeroShot("tiny_choice", tasks, max_length=6), tiny_llama, tiny_tokenizer)
    assert found.facts["truncated_requests"] > 0
    assert "at most 6 tokens" in found.protocol


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"task": "tiny_group"}, "tiny_group is a group of 2 tasks.*: tiny_choice, tiny_rolling"),
        ({"task": "tiny_gone"}, "'tiny_gone' cannot be loaded: .*gone.jsonl"),
        ({"task": "tiny_hub"}, "'tiny_hub' cannot be loaded: .*nobody/nothing.*once online"),
        ({"task": "tiny_chioce"}, "unknown task 'tiny_chioce': did you mean 'tiny_choice'"),
        ({"task": "tiny_rolling", "fewshot": 1}, "'tiny_rolling' shows no examples"),
        ({"task": "tiny_zero", "fewshot": 1}, "'tiny_zero' shows no examples"),
        ({"task": "tiny_choice", "limit": 0}, "limit is 0: give at least 1"),
        ({"task": "tiny_choice", "include": Path("nowhere")}, "no folder at nowhere"),
    ],
)
def test_what_cannot_be_measured(
    tiny_llama: Any,
    tiny_tokenizer: Any,
    tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    named: str,
):
    from lm_eval.tasks import TaskManager

    empty = TaskManager(include_defaults=False)  # indexing lm-eval's own tasks takes 20 seconds
    monkeypatch.setattr(harness, "_builtin", lambda: empty)
    with pytest.raises(ExciseError, match=named) as caught:
        ZeroShot(**{"include": tasks, **arguments}).plan(Loaded(tiny_llama, tiny_tokenizer, ""))
    assert len(str(caught.value).splitlines()) == 1


def test_a_group_stands_for_its_tasks(tasks: Path):
    assert leaf_tasks("tiny_group", tasks) == ["tiny_choice", "tiny_rolling"]
    assert leaf_tasks("tiny_rolling", tasks) == ["tiny_rolling"]


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(ExciseError, match=r"pip install 'excise\[eval\]'"):
        ZeroShot("arc_easy")
