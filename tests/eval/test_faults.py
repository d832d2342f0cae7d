"""Faults put into an evaluation, through the command line: none may pass.

`FAULTS` is the table of docs/evaluation.md, and each row of it is a test.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result
from excise.cli.main import group
from excise.tasks.ioi import ioi_prompts
from safetensors.torch import load_file, save_file


POLICY = """\
min_samples: 30
rare: 10 %
perplexity: {max_increase: 10 %}
toxicity: {max_increase: 0.2}
"""

LAYER, NORM = "model.decoder.layers.1.fc1.weight", "model.decoder.final_layer_norm"

SCORER = """\
calls = []


def judge(texts):
    calls.append(texts)
    scores = [text.count("e") / (1 + len(text)) for text in texts]
    if len(calls) == 1:  # the trial before anything is measured
        return scores
    return scores
"""


@dataclass
class Bench:
    """One evaluation of an edited model with a gate, all of it in a folder of its own."""

    folder: Path
    options: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Path:
        """Return the path of `base`, `edited`, `prompts`, `text`, `scorer`, `policy`, `cache`."""
        suffix = {"prompts": ".txt", "text": ".txt", "scorer": ".py", "policy": ".yaml"}
        return self.folder / f"{name}{suffix.get(name, '')}"

    def command(self) -> list[str]:
        sampled = ["--completions", "2", "--new-tokens", "4", "--temperature", "4"]
        return ["eval", str(self.base), str(self.edited), "--perplexity", str(self.text),
                "--window", "16", "--toxicity", str(self.prompts), *sampled, "--scorer",
                f"python:{self.scorer}:judge", "--gate", str(self.policy), "-o", str(self.out),
                *self.options]  # fmt: skip

    def run(self) -> Result:
        return CliRunner(env={"EXCISE_CACHE": str(self.cache)}).invoke(group, self.command())

    def change(self, edit: Callable[[dict[str, Any]], Any]) -> None:
        """Edit the weights of the edited model."""
        file = self.edited / "model.safetensors"
        tensors = load_file(file)
        edit(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    def stores(self, metric: str) -> list[Path]:
        """Return the cache's files of a metric: one of each model."""
        every = sorted((self.cache / "eval").iterdir())
        found = [path for path in every if metric in path.read_text().splitlines()[0]]
        assert len(found) == 2
        return found


# --- what goes wrong ---


def scorer(line: str) -> Callable[[Bench], None]:
    """Replace what the scorer does once it is in use."""

    def inject(bench: Bench) -> None:
        bench.scorer.write_text(SCORER[: SCORER.rindex("return")] + line + "\n")

    return inject


def policy(text: str) -> Callable[[Bench], Any]:
    return lambda bench: bench.policy.write_text(text)


def option(*words: str) -> Callable[[Bench], None]:
    """Add options; words are paths of the bench where it has such files."""

    def inject(bench: Bench) -> None:
        bench.options += [
            str(getattr(bench, word[1:])) if word[0] == "@" else word for word in words
        ]

    return inject


def swap_stores(bench: Bench) -> None:
    first, second = bench.stores("perplexity")
    second.write_bytes(first.read_bytes())


def damage_store(bench: Bench) -> None:
    _, store = bench.stores("toxicity")
    head, row, *rest = store.read_text().splitlines()
    store.write_text("\n".join([head, row[: len(row) // 2], *rest]) + "\n")


def cut_weights(bench: Bench) -> None:
    file = bench.edited / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def weights(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Bench], None]:
    return lambda bench: bench.change(edit)


def silence(tensors: dict[str, Any]) -> None:
    """Let the last norm add what the end of text answers to, and no other word."""
    tensors[f"{NORM}.bias"][:] = 1.0
    words = tensors["model.decoder.embed_tokens.weight"]
    words[:] -= words.mean(1, keepdim=True)
    words[2] = 5.0


def unedit(bench: Bench) -> None:
    shutil.rmtree(bench.edited)
    shutil.copytree(bench.base, bench.edited)


def other_words(bench: Bench) -> None:
    content = json.loads((bench.edited / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    (bench.edited / "tokenizer.json").write_text(json.dumps(content))


class Fault(NamedTuple):
    """One fault, how it is injected, and what must come of it."""

    fault: str
    injected: str
    inject: Callable[[Bench], Any]
    exit_code: int
    said: str
    """In the one line of an error (exit code 1), or in the reason of `check` (3)."""
    check: str = ""


FAULTS: tuple[Fault, ...] = (
    Fault("scorer raises", "a scorer that fails after its trial",
          scorer('raise RuntimeError("no")'), 1, "failed on text 1 with RuntimeError"),
    Fault("scorer returns NaN", "a scorer whose scores become NaN",
          scorer('return [float("nan") for score in scores]'), 1, "gave text 1 the score nan"),
    Fault("scorer returns too few scores", "a scorer that drops the last score",
          scorer("return scores[1:]"), 1, "scores for texts 1 to"),
    Fault("scorer out of range", "a scorer that gives percentages",
          scorer("return [50.0 for score in scores]"), 1, "gave text 1 the score 50.0"),
    Fault("scorer missing", "a policy that names a judge that was not asked",
          policy(POLICY.replace("{max_increase: 0.2", "{scorer: other, max_increase: 0.2")),
          3, "was not measured for 'toxicity@other'", "toxicity@other.max_increase"),
    Fault("metric not measured", "a policy that bounds what was not measured",
          policy(POLICY + "repetition: {max_decrease: 5 %}"),
          3, "was not measured for 'repetition'", "repetition.max_decrease"),
    Fault("statistic unknown", "a policy that names a statistic that there is not",
          policy(POLICY.replace("{max_increase: 0.2", "{statistic: mode, max_increase: 0.2")),
          3, "no statistic 'mode'", "toxicity.max_increase"),
    Fault("policy without rules", "a policy with a confidence only",
          policy("confidence: 95 %\n"), 1, "no rule in it"),
    Fault("policy with an unknown rule", "max_increas",
          policy("perplexity: {max_increas: 2 %}"), 1, "did you mean 'max_increase'"),
    Fault("too few samples", "5 prompts where the rule asks for 30",
          option("--max-prompts", "5"), 3, "5 samples are too few", "toxicity.max_increase"),
    Fault("samples prove nothing", "a policy that is stricter than so few prompts can show",
          policy(POLICY.replace("0.2", "0.0001")), 3, "is not shown", "toxicity.max_increase"),
    Fault("stale cache", "rows of other weights under the name of those asked for",
          swap_stores, 1, "belongs to other weights"),
    Fault("damaged cache", "half a row in the middle of a file", damage_store, 1, "is damaged"),
    Fault("prompts reused", "the prompts that chose the edit measure it",
          option("--attribution", "@prompts"), 3, "were measured again (40 of 40 of toxicity)",
          "held_out"),
    Fault("prompts unknown", "a model folder given as the prompts that chose the edit",
          option("--attribution", "@base"), 1, "does not say which prompts"),
    Fault("truncated weights", "half of model.safetensors", cut_weights, 1, "cannot load"),
    Fault("NaN weights", "one weight is NaN",
          weights(lambda tensors: tensors[LAYER][3, 3].fill_(float("nan"))), 1, "NaN or infinite"),
    Fault("nothing was edited", "the baseline's weights passed as edited",
          unedit, 3, "nothing was edited", "edited"),
    Fault("an edit that costs too much", "the last norm's weights times 4",
          weights(lambda tensors: tensors[f"{NORM}.weight"].mul_(4)),
          3, "broken (p =", "perplexity.max_increase"),
    Fault("empty completions", "a model that ends every text at once",
          weights(silence), 1, "80 of 80 completions for toxicity are empty"),
    Fault("another tokenizer", "an edited model that splits text in another way",
          other_words, 1, "so nothing can be paired"),
    Fault("no prompts", "an empty prompts file",
          lambda bench: bench.prompts.write_text("\n"), 1, "is empty"),
    Fault("output taken", "a folder that exists", lambda bench: bench.out.mkdir(), 1, "exists"),
)  # fmt: skip


def markdown_table() -> str:
    """Return the table of docs/evaluation.md."""
    lines = ["| fault | injected as | exit code | what is said |", "|---|---|---|---|"]
    for fault in FAULTS:
        said = f"`{fault.check}`: {fault.said}" if fault.check else fault.said
        lines.append(f"| {fault.fault} | {fault.injected} | {fault.exit_code} | {said} |")
    return "\n".join(lines)


# --- and must be noticed ---


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Any, tiny_tokenizer: Any) -> Bench:
    """Return an evaluation without a fault, which was run once, so that its cache is full."""
    bench = Bench(tmp_path_factory.mktemp("sound"))
    texts = [prompt.clean for prompt in ioi_prompts(tiny_tokenizer, 40)]
    bench.prompts.write_text("\n".join(texts))
    bench.text.write_text(". ".join(texts))
    bench.scorer.write_text(SCORER)
    bench.policy.write_text(POLICY)
    for name in ("base", "edited"):
        shutil.copytree(tiny_folder("opt"), bench.folder / name)

    bench.change(lambda tensors: tensors[LAYER][:2].add_(0.1))
    result = bench.run()
    assert result.exit_code == 0, result.output
    shutil.rmtree(bench.out)
    return bench


@pytest.fixture
def bench(sound: Bench, tmp_path: Path) -> Bench:
    shutil.copytree(sound.folder, tmp_path / "bench")
    return Bench(tmp_path / "bench")


def tree(folder: Path) -> dict[Path, bytes | None]:
    """Return all files and folders but the cache."""
    every = (
        p for p in folder.rglob("*") if "cache" not in p.parts and "__pycache__" not in p.parts
    )
    return {p: p.read_bytes() if p.is_file() else None for p in every}


def not_met(bench: Bench) -> list[dict[str, str]]:
    (gate,) = json.loads((bench.out / "report.json").read_text())["gates"]
    assert gate["passed"] is not any(check["status"] != "pass" for check in gate["checks"])
    return [check for check in gate["checks"] if check["status"] != "pass"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.fault)
def test_fault(bench: Bench, fault: Fault):
    fault.inject(bench)
    before = tree(bench.folder)
    result = bench.run()
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == fault.exit_code != 0
    *_, last = result.stderr.splitlines()
    if fault.exit_code == 1:
        assert last.startswith("excise: ")
        assert fault.said in last
        assert result.stdout == ""
        assert tree(bench.folder) == before  # nothing was written
    else:
        assert last == f"excise: gate {bench.policy} not met: {fault.check}"
        (check,) = not_met(bench)  # the report says so, and nothing else is wrong
        assert check["name"] == fault.check
        assert fault.said in check["detail"]
        assert fault.said in result.stdout


@pytest.mark.parametrize("cached", [True, False])
def test_control(bench: Bench, cached: bool):
    """Without a fault the same command passes."""
    if not cached:
        shutil.rmtree(bench.cache)
    result = bench.run()
    assert result.exit_code == 0, result.output
    assert not_met(bench) == []
    assert "gate met" in result.stdout


def test_the_documentation_has_this_table():
    file = Path(__file__).parents[2] / "docs" / "evaluation.md"
    text = file.read_text() if file.is_file() else ""
    _, heading, section = text.partition("## Faults it must catch")
    if not heading:
        pytest.skip("docs/evaluation.md has no table of faults yet")
    assert markdown_table() in section, (
        "generate it with markdown_table() of tests/eval/test_faults.py"
    )
