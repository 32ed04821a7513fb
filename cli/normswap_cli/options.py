"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from normswap.model import Model

model_argument = click.argument("model")
output_option = click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="The file to write, .onnx or .pt2. It may be MODEL itself.",
)
sites_option = click.option(
    "--sites",
    metavar="PATTERN",
    help="Globs on site names, role=ROLE and tower=TOWER, separated by commas.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)
trust_option = click.option(
    "--trust", is_flag=True, help="Let the pickled parts of a .pt2 file run code."
)
arch_option = click.option(
    "--arch",
    metavar="ARCH",
    help="Where a MODEL is a file of weights (.safetensors, .pth): what they are of, timm:NAME or "
    "open_clip:NAME, with options as in timm:NAME?num_classes=10.",
)


def load_models(sources: Sequence[str], trust: bool, arch: str | None) -> list[Model]:
    """The models that a command names; ``arch`` is for those that are files of weights."""
    from normswap.errors import NormswapError
    from normswap.io.load import load, takes_arch

    if arch is not None and not any(takes_arch(source) for source in sources):
        raise NormswapError(f"--arch {arch}: no MODEL is a file of weights; omit it")
    return [load(s, trust=trust, arch=arch if takes_arch(s) else None) for s in sources]
