"""excise correct, killed at 20 moments: no half edit, and the same command again ends the same."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from excise.tasks.ioi import ioi_prompts


KINDS = ("llama-gqa", "opt")

KILLED = """
import functools, hashlib, json, os, random, shutil, signal, sys, threading, time
from pathlib import Path
from click.testing import CliRunner
from excise.cli.correct import command
from excise.core.files import artefact
from excise.core.files.artefact import read_artefact
from excise.core.files.output import check_output
from excise.core.loading import load_model
from excise.correction import setup
from excise.edits.edit import Edit
from excise.core.files.progress import KIND
from excise.core import bootstrap
from excise.eval.repetition import Repetition
from tqdm import tqdm

# tqdm's own lock is shared with children: one that is killed while it holds it would stop all
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0  # no thread, as it could hold the lock during a fork

# for speed: none of it is about files
artefact.version = functools.cache(artefact.version)
bootstrap.RESAMPLES = 200
bootstrap.resampled_sums.__defaults__ = (200,)
setup.Repetition = functools.partial(Repetition, Repetition().prompts[:6])

top, models, options = Path(sys.argv[1]), sys.argv[2:4], sys.argv[4:]
replace = Path.replace

def slow_disk():
    Path.replace = lambda path, target: (time.sleep(0.02), replace(path, target))[1]

def killed_while_clearing_up():
    def half(folder, **options):
        found = next(folder.rglob("config.json"), None)
        if found and "progress" in folder.name:
            found.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        rmtree(folder, **options)
    rmtree, shutil.rmtree = shutil.rmtree, half

def writes(out):
    until = time.monotonic() + 60
    while not list(out.parent.glob(".out.excise.part")) and time.monotonic() < until:
        time.sleep(0.001)

def child(model, out, *more, first=slow_disk, wait=None):
    os.environ["EXCISE_CACHE"] = str(out.parent.with_name(f"{out.parent.name}.cache"))
    out.parent.mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        first()
        command_line = [model, *options, "-o", str(out), "--resume", *more]
        done = CliRunner().invoke(command, command_line)
        os._exit(done.exit_code if isinstance(done.exception, (SystemExit, type(None))) else 9)
    if wait:
        wait(out)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def bytes_of(model):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in model.iterdir()}

def content(out):
    edit, read = Edit.from_pretrained(out), lambda name: json.loads((out / name).read_text())
    config = {name: value for name, value in edit.config.items() if name != "created"}
    return edit.digest, config, read("report.json")["correction"], read("seen.json")

def state(out, old, new):
    if not out.exists():
        return "nothing"
    return {json.dumps(old): "old", json.dumps(new): "new"}[json.dumps(content(out))]

for model in models:
    load_model(model)  # no child has to import its classes
before = [bytes_of(Path(model)) for model in models]
older, whole = [], []
for n, model in enumerate(models):
    out = top / f"older{n}" / "out"
    child(model, out, "--sizes", "1")
    older.append(out)
    started, out = time.perf_counter(), top / f"whole{n}" / "out"
    status = child(model, out)
    whole.append((status, time.perf_counter() - started, content(out)))
random.seed(0)
for n in range(23):
    model, there = n % 2, n % 4 >= 2
    status, seconds, new = whole[model]
    old, out = content(older[model]), top / str(n) / "out"
    if there:
        shutil.copytree(older[model], out)
    more = ["--overwrite"] if there else []
    delay = seconds * (n + random.random()) / 20
    if n < 22:
        wait = (lambda _: time.sleep(delay)) if n < 20 else writes
        ended = child(models[model], out, *more, wait=wait)
    else:
        ended = child(models[model], out, *more, first=killed_while_clearing_up)
    left = sorted(path.name for path in out.parent.iterdir())
    found = [state(out, old, new)]
    check_output(out, True, "edit")  # what any later run does first
    found.append(state(out, old, new))
    progress = out.with_name(".out.progress")
    for part in progress.glob("[!.]*"):
        read_artefact(part, KIND)
    if found[-1] == "new":  # done, so the same command alone would only say that
        more = ["--overwrite"]
    again = child(models[model], out, *more, first=lambda: None)
    print(json.dumps({
        "there": there, "killed": ended == -signal.SIGKILL, "left": left, "found": found,
        "measured": out.parent.with_name(f"{n}.cache").exists(),
        "again": again == status and state(out, old, new) == "new",
        "at the end": sorted(path.name for path in out.parent.iterdir()),
    }), flush=True)
print(json.dumps([bytes_of(Path(model)) for model in models] == before))
"""
"""One process that forks a child per kill, so that torch is imported once: 20 at random moments,
two while it writes, one while it clears up. Renames are slow, for kills to come between them."""


@pytest.fixture
def options(tmp_path: Path, tiny_tokenizer: Any) -> list[str]:
    """Return options of a short run, with their files."""
    parts = {
        "bad": [prompt.clean for prompt in ioi_prompts(tiny_tokenizer, 60)],
        "general": [p.clean + " ." for p in ioi_prompts(tiny_tokenizer, 40, 3, "validation")],
        "text": [p.clean + " ." for p in ioi_prompts(tiny_tokenizer, 60, 4, "test")],
    }
    for name, lines in parts.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    found = ["--undesired", tmp_path / "bad", "--general", tmp_path / "general", "--perplexity",
             tmp_path / "text", "--window", 16, "--windows", 8, "--sizes", "1,4", "--factor", 0,
             "--budget", "perplexity=90%", "--controls", 0, "--task", "ioi", "--task-samples", 4,
             "--min-samples", 5]  # fmt: skip
    return list(map(str, found))


def test_kill_9_at_20_moments(
    options: list[str], tiny_folder: Callable[[str], Path], tmp_path: Path
):
    (tmp_path / "runs").mkdir()
    models = [tiny_folder(kind) for kind in KINDS]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "runs", *models, *options],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *kills, untouched = map(json.loads, done.stdout.splitlines())
    assert untouched
    assert len(kills) == 23
    for kill in kills:
        old = "old" if kill["there"] else "nothing"
        raw, swept = kill["found"]
        assert raw in (old, "new", "nothing"), kill  # nothing: killed between two renames
        assert swept in (old, "new"), kill
        assert all(name == "out" or name.startswith(".") for name in kill["left"]), kill
        assert kill["again"], kill
        assert kill["at the end"] == ["out"], kill
    middle = [kill for kill in kills[:20] if kill["killed"] and kill["found"][-1] != "new"]
    assert len(middle) >= 5
    assert sum(kill["measured"] for kill in middle) >= 3
    for kill in kills[20:22]:
        assert any(name.endswith(".part") for name in kill["left"]), kill
    assert [kill["killed"] for kill in kills[20:]] == [True] * 3
    assert kills[22]["found"][-1] == "new"
