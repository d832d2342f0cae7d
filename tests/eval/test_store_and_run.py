"""Evaluations that are killed, resumed and repeated: nothing twice, nothing stale, nothing lost."""

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from excise.core.errors import ExciseError
from excise.core.loading import Loaded
from excise.core.memory import readable
from excise.core.statistics import Statistic
from excise.core.texts import text_hash
from excise.eval import perplexity as perplexity_module
from excise.eval.outcome import Metric, Outcome, Plan, Row, column
from excise.eval.perplexity import Perplexity, piece_losses
from excise.eval.run import default_cache, evaluate, forecast
from excise.eval.store import Store


@dataclass(frozen=True)
class Lengths(Metric):
    """Counts letters, and notes which units it was asked for."""

    texts: Sequence[str] = ("a", "bb", "ccc", "dddd")
    protocol: str = "letters"
    stop: int | None = None
    """After so many units the run is killed."""
    error: type[BaseException] = RuntimeError
    name: str = "lengths"
    made: str = "lengths"
    done: list[int] = field(default_factory=list, compare=False)

    def plan(self, loaded: Loaded) -> Plan:
        identity = {"texts": list(self.texts)}
        return Plan(self.protocol, tuple(map(text_hash, self.texts)), self.texts, identity)

    def rows(
        self, loaded: Loaded, plan: Plan, todo: Sequence[int], progress: bool
    ) -> Iterator[tuple[int, Row]]:
        for index in sorted(todo, reverse=True):  # any order will do
            if len(self.done) == self.stop:
                raise self.error("killed")
            self.done.append(index)
            yield index, {"length": len(self.texts[index])}

    def outcomes(self, loaded: Loaded, plan: Plan, rows: Sequence[Row]) -> list[Outcome]:
        made = {"length": column(rows, "length")}
        kinds = (Statistic("length", "length"),)
        return [Outcome(self.made, plan.protocol, kinds, plan.units, made)]


@pytest.fixture
def loaded(tiny_llama: Any, tiny_tokenizer: Any) -> Loaded:
    return Loaded(tiny_llama, tiny_tokenizer, "tiny")


def lengths(loaded: Loaded, cache: Path | None, metric: Lengths) -> list[float]:
    return evaluate(loaded, [metric], cache=cache)["lengths"].columns["length"].tolist()


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_a_killed_run_goes_on_where_it_was(loaded: Loaded, tmp_path: Path, stop: int):
    killed, resumed, again = Lengths(stop=stop), Lengths(), Lengths()
    with pytest.raises(RuntimeError, match="killed"):
        lengths(loaded, tmp_path, killed)
    assert lengths(loaded, tmp_path, resumed) == [1, 2, 3, 4]
    assert killed.done + resumed.done == [3, 2, 1, 0]
    assert lengths(loaded, tmp_path, again) == [1, 2, 3, 4]
    assert again.done == []


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_a_killed_perplexity_is_that_of_one_run(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
):
    documents = ["the cat sat", "the cat sat on the mat and it was not there", "mat", "two three"]
    metric, real = Perplexity(documents, "document", 4, batch_size=1), piece_losses
    whole, passes = evaluate(loaded, [metric])["perplexity"], []

    def fragile(model: Any, pieces: Any) -> list[float]:
        if len(passes) == stop:
            raise MemoryError
        passes.append(pieces)
        return real(model, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(perplexity_module, "piece_losses", fragile)
        with pytest.raises(MemoryError):
            evaluate(loaded, [metric], cache=tmp_path)
    kept = len(only_file(tmp_path).read_text().splitlines()) - 1
    assert kept == {0: 0, 1: 1, 3: 1, 5: 3}[stop]  # the pieces are 1 + 3 + 1 + 1
    found = evaluate(loaded, [metric], cache=tmp_path)["perplexity"]
    assert found.measures == whole.measures
    monkeypatch.setattr(perplexity_module, "piece_losses", None)
    other_batches = Perplexity(documents, "document", 4, batch_size=3)  # all of it is read
    again = evaluate(loaded, [other_batches], cache=tmp_path)["perplexity"]
    assert again.measures == whole.measures


def test_half_a_line_is_dropped(loaded: Loaded, tmp_path: Path):
    lengths(loaded, tmp_path, Lengths())
    path = only_file(tmp_path)
    content = path.read_bytes()
    starts = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for cut in (0, 1, starts[0] - 1, starts[0], starts[0] + 1, starts[2] - 1, len(content) - 1):
        path.write_bytes(content[:cut])
        metric = Lengths()
        assert lengths(loaded, tmp_path, metric) == [1, 2, 3, 4]
        whole = max(0, sum(start <= cut for start in starts) - 1)
        assert metric.done == [3, 2, 1, 0][whole:]
        assert [json.loads(line)["unit"] for line in path.read_text().splitlines()[1:]] == [
            3, 2, 1, 0,
        ]  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", "3", '{"unit": 0}', '{"unit": 0, "row": 5}', '{"unit": "x", "row": {}}', "\0", "é"],
)
def test_a_damaged_file_is_refused(loaded: Loaded, tmp_path: Path, damage: str):
    lengths(loaded, tmp_path, Lengths())
    path = only_file(tmp_path)
    head, *lines = path.read_text().splitlines(keepends=True)
    for content in (head + damage + "\n" + "".join(lines), damage + "\n" + "".join(lines)):
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(ExciseError, match=f"{path.name} is damaged: remove it"):
            lengths(loaded, tmp_path, Lengths())


def test_a_file_of_another_key_is_refused(loaded: Loaded, tmp_path: Path):
    lengths(loaded, tmp_path / "a", Lengths())
    lengths(loaded, tmp_path / "b", Lengths(protocol="other"))
    only_file(tmp_path / "b").replace(only_file(tmp_path / "a"))
    with pytest.raises(ExciseError, match="belongs to other weights, data, protocol or versions"):
        lengths(loaded, tmp_path / "a", Lengths())


def test_without_a_cache_nothing_is_written(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "cache"))
    assert default_cache() == tmp_path / "cache" / "eval"
    assert lengths(loaded, None, Lengths()) == [1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_used(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ExciseError, match=r"cannot be used \(.+\): set EXCISE_CACHE") as caught:
            lengths(loaded, folder, Lengths())
        assert "\n" not in str(caught.value)

    store = Store(tmp_path / "cache", {})

    def full(self: Store, line: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "_append", full)
    with pytest.raises(ExciseError, match=r"\(No space left on device\).*--no-cache"):
        store.add(0, {})


def test_an_interrupt_says_what_is_kept(loaded: Loaded, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt, match="2 of 4 units of lengths are kept: the same"):
        lengths(loaded, tmp_path, Lengths(stop=2, error=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt, match=r"^killed$"):
        lengths(loaded, None, Lengths(stop=2, error=KeyboardInterrupt))


def test_names_are_unique(loaded: Loaded):
    for metrics in ([], [Lengths(), Lengths(("x",))]):
        with pytest.raises(ExciseError, match="name at least one, each once"):
            evaluate(loaded, metrics)
    with pytest.raises(ExciseError, match="lengths was measured twice, by other as well"):
        evaluate(loaded, [Lengths(), Lengths(name="other")])
    both = evaluate(loaded, [Lengths(), Lengths(name="other", made="other")])
    assert list(both.outcomes) == ["lengths", "other"]
    with pytest.raises(ExciseError, match="tiny was not measured for 'x', but for lengths, other"):
        both["x"]


def test_units_that_were_not_measured(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Lengths, "rows", lambda *_: iter([(1, {"length": 2})]))
    for cache in (None, tmp_path):
        with pytest.raises(ExciseError, match="lengths: 3 of 4 units were not measured"):
            evaluate(loaded, [Lengths()], cache=cache)


def test_models_in_training_mode_are_refused(loaded: Loaded):
    loaded.model.train()
    with pytest.raises(ExciseError, match="training mode"):
        evaluate(loaded, [Lengths()])


def test_prompts_that_chose_the_edit_are_counted(loaded: Loaded):
    chosen = frozenset(map(text_hash, ["BB ", "dddd", "else"]))
    found = evaluate(loaded, [Lengths(), Lengths(("x",), name="o", made="o")], attribution=chosen)
    assert found.reused() == {"lengths": 2}
    assert evaluate(loaded, [Lengths()]).reused() == {}


def test_an_evaluation_says_where_it_is_from(loaded: Loaded):
    found = evaluate(loaded, [Lengths()])
    other = evaluate(Loaded(deepcopy(loaded.model).double(), loaded.tokenizer, "d"), [Lengths()])
    assert found.model == "tiny"
    assert found.environment["dtype"] == "float32"
    assert other.environment["dtype"] == "float64"
    assert {"torch", "transformers", "python"} <= set(found.environment["versions"])
    assert found.environment["seconds"] >= 0


def test_forecast(loaded: Loaded):
    metric = Perplexity(["the cat sat on the mat"], "window", 2, batch_size=10)
    size = sum(p.numel() for p in loaded.model.parameters())
    weights, logits = 4 * size, 10 * 2 * 160 * (4 + 8)
    told = forecast(loaded, [metric, Lengths()])
    assert told.startswith("units: perplexity 3, lengths 4; about ")
    assert f"about {readable(weights + logits)} ({readable(weights)} of weights" in told
