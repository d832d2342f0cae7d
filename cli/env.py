"""excise env: what this machine runs."""

import platform

import click

from ..core.files.json_text import json_text
from . import options as shared
from .terminal import say


@click.command("env")
@shared.json_option
def command(as_json: bool) -> None:
    """Print versions, devices and memory, for bug reports."""
    import psutil
    import torch

    from ..core.files.artefact import versions
    from ..core.gguf import cache_folder
    from ..core.memory import readable

    found = {
        **versions(),
        "platform": platform.platform(),
        "cores": psutil.cpu_count(),
        "memory": readable(psutil.virtual_memory().total),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cache": str(cache_folder()),
    }
    if as_json:
        say(json_text(found))
    else:
        say("\n".join(f"{name:13} {value}" for name, value in found.items()))
