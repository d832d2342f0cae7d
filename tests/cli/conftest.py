"""What the command-line tests share: a runner, and the files a user would have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from excise.tasks.ioi import ioi_prompts


@pytest.fixture(autouse=True)
def own_cache(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Path | None:
    """Keep the user's cache out of every test but those of the embedded model, which is in it."""
    if "smollm2" in request.fixturenames:
        return None
    path = tmp_path_factory.mktemp("cache") / "excise"
    monkeypatch.setenv("EXCISE_CACHE", str(path))
    return path


@pytest.fixture
def excise() -> Callable[..., Result]:
    """Return `excise("verb", ...)`, which runs in this process; a crash fails the test."""
    from excise.cli.main import group

    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(group, list(map(str, arguments)), catch_exceptions=False)

    return run


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """Return six IOI prompts as a JSONL file."""
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    prompts = ioi_prompts(tiny_tokenizer, 6)
    path.write_text("".join(json.dumps(vars(prompt)) + "\n" for prompt in prompts))
    return path


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """Return some 650 words of text as a file."""
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text(". ".join(prompt.clean for prompt in ioi_prompts(tiny_tokenizer, 40)))
    return path


@pytest.fixture(scope="session")
def scored(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_folder: Callable[[str], Path],
    prompts_file: Path,
) -> Callable[[str], Path]:
    """Return `scored(kind)`, the relevance folder of a tiny model, weights and all."""
    from excise.cli.main import group

    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            path = tmp_path_factory.mktemp("scored") / kind
            arguments = ["score", tiny_folder(kind), "--prompts", prompts_file, "-o", path]
            result = CliRunner().invoke(group, [*map(str, arguments), "--weights", "*"])
            assert result.exit_code == 0, result.output
            folders[kind] = path
        return folders[kind]

    return folder
