"""What a user installs: rooms, imports, dependencies, and help that comes at once."""

import ast
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import excise
import pytest


tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
FILES = sorted(
    path for package in PACKAGES for path in ROOT.joinpath(*package.split(".")[1:]).glob("*.py")
)

MAY_IMPORT = {
    "core": set(),
    "tasks": {"core"},
    "edits": {"core"},
    "lrp": {"core", "tasks"},
    "viz": {"core"},
    "prune": {"core", "tasks", "lrp", "viz"},
    "circuits": {"core", "tasks", "lrp", "viz"},
    "eval": {"core", "tasks", "lrp", "viz"},
    "correction": {"core", "tasks", "edits", "lrp", "viz", "prune", "eval"},
}
"""Rooms by whom they may import, themselves aside (docs/architecture.md); `cli` imports all."""


def imports(path: Path) -> Iterator[tuple[str, bool, str]]:
    """Yield (module, relative or not, name) of each import, those inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{'.' * node.level}{node.module or ''}", node.level > 0, alias.name


def room_of(path: Path) -> str:
    """Return the top room of a file, and nothing for one at the root."""
    return path.relative_to(ROOT).parts[0] if path.parent != ROOT else ""


def targets(path: Path) -> Iterator[Path]:
    """Yield the files of the package that a file imports, inside functions as well.

    What is imported for types alone is left out: it never runs.
    """
    tree = ast.parse(path.read_text())
    typed = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    typed = [node for node in typed if ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {id(inner) for node in typed for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, ast.ImportFrom):
            continue
        if not node.level:
            continue
        folder = path.parents[node.level - 1]
        base = folder.joinpath(*(node.module or "").split("."))
        for alias in node.names:
            for found in (base.with_suffix(".py"), base / f"{alias.name}.py", base / "__init__.py"):
                if found.is_file():
                    yield found
                    break


def test_the_list_of_packages_is_the_folders_with_an_init():
    inits = [path.relative_to(ROOT).parts[:-1] for path in ROOT.glob("**/__init__.py")]
    rooms = [
        parts for parts in inits if not any(part[0] == "." or part == "build" for part in parts)
    ]
    assert sorted(".".join(("excise", *parts)) for parts in rooms) == sorted(PACKAGES)
    assert sorted(path.name for path in ROOT.glob("*.py")) == ["__init__.py", "__main__.py"]
    assert len(FILES) > 30


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_keeps_to_its_room(path: Path):
    room = room_of(path)
    for module, _, _ in imports(path):
        assert module.split(".")[0] != "excise", f"{module}: inside the package, relative imports"
    if not room or room == "cli":
        return
    for target in targets(path):
        assert room_of(target) in {*MAY_IMPORT[room], room}, f"imports {target.relative_to(ROOT)}"
    assert len(path.read_text().splitlines()) <= 400


def test_no_files_import_each_other_in_a_circle():
    left = {path: set(targets(path)) - {path} for path in FILES if path.parent != ROOT}
    while free := [path for path, wanted in left.items() if not wanted & left.keys()]:
        for path in free:
            del left[path]
    assert sorted(str(path.relative_to(ROOT)) for path in left) == []


def test_a_room_has_one_subject():
    count = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert {str(room): n for room, n in count.items() if n > 25} == {}


def test_the_rule_can_be_broken():
    """The parser sees imports at any depth, so that the tests above are not vacuous."""
    found = {
        (room_of(path), str(target.relative_to(ROOT))) for path in FILES for target in targets(path)
    }
    assert ("prune", "lrp/relevance.py") in found
    assert ("cli", "eval/choice.py") in found  # inside a function
    assert ("edits", "core/files/output.py") in found
    assert set(MAY_IMPORT) >= {room_of(path) for path in FILES} - {"", "cli"}


def test_dependencies_are_used_and_what_is_used_is_declared():
    declared = distributions(PROJECT["project"]["dependencies"])
    extras = PROJECT["project"]["optional-dependencies"]
    optional = distributions(extra for name in extras for extra in extras[name])
    used = {
        module.split(".")[0]
        for path in FILES
        for module, relative, _ in imports(path)
        if not relative
    }
    third_party = {DISTRIBUTIONS.get(n, n) for n in used if n not in sys.stdlib_module_names}
    assert third_party - optional == declared


DISTRIBUTIONS = {"yaml": "pyyaml", "lm_eval": "lm-eval"}
"""Packages whose import has another name."""


def distributions(requirements: Iterable[str]) -> set[str]:
    return {re.split(r"[<>=\[ ]", requirement)[0] for requirement in requirements}


def test_extras():
    extras = PROJECT["project"]["optional-dependencies"]
    text = "".join(path.read_text() for path in FILES)
    for name in extras.keys() - {"all", "dev", "lxt"}:
        assert f"excise[{name}]" in text, f"no message says how to get the extra {name}"
    assert set(re.findall(r"excise\[(\w+)\]", text)) <= extras.keys()


def test_tensor_functions_say_their_shapes():
    shaped = {room_of(p) for p in FILES if any(m == "jaxtyping" for m, _, _ in imports(p))}
    assert shaped >= {"lrp", "prune"}


def test_every_public_name_is_there():
    for name in excise.__all__:
        assert getattr(excise, name).__doc__, name
        assert name in dir(excise)
    assert excise.__version__
    with pytest.raises(AttributeError, match="nothing"):
        getattr(excise, "nothing")  # noqa: B009


HEAVY = ("torch", "transformers", "numpy", "datasets", "accelerate", "jaxtyping")


def loaded_by(code: str) -> set[str]:
    """Run code in a new process and return which heavy packages it loaded."""
    report = f"import sys; print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import atexit\natexit.register(lambda: exec({report!r}, {{}}))\n{code}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(ast.literal_eval(done.stderr.splitlines()[-1]))


HELP = "import sys; from excise.cli.main import group; group({}, prog_name='excise')"


@pytest.mark.parametrize(
    "code",
    [
        "import excise; dir(excise); excise.ExciseError",
        "import excise; excise.FAMILIES; excise.Sample",
        HELP.format(["--help"]),
        *(
            HELP.format([verb, "--help"])
            for verb in (
                "score",
                "prune",
                "circuit",
                "correct",
                "eval",
                "apply",
                "verify",
                "revert",
                "diff",
                "show",
                "demo",
            )
        ),
    ],
)
def test_no_torch_until_it_is_needed(code: str):
    assert loaded_by(code) == set()


def test_torch_is_seen_when_it_is_loaded():
    assert "torch" in loaded_by("import excise; excise.Relevance")


def test_help_comes_at_once(tmp_path: Path):
    def seconds() -> float:
        started = time.perf_counter()
        command = [sys.executable, "-m", "excise", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert all(verb in done.stdout for verb in ("score", "prune", "eval", "show", "ls", "env"))
        assert done.stderr == ""
        return time.perf_counter() - started

    assert min(seconds() for _ in range(3)) < 0.6  # 0.3 on an idle machine
