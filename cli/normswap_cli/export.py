"""``normswap export``: a model as a file of another kind."""

from __future__ import annotations

from pathlib import Path

import click

from normswap_cli.console import show, working
from normswap_cli.options import (
    arch_option,
    examples,
    load_models,
    model_argument,
    output_option,
    trust_option,
)


@click.command(
    epilog=examples(
        "normswap export timm:vit_tiny_patch16_224 -o vit.onnx",
        "normswap export clip-folder -o clip.pt2",
    )
)
@model_argument
@output_option
@trust_option
@arch_option
def export(model: str, output: Path, trust: bool, arch: str | None) -> None:
    """Write MODEL unchanged to OUT.onnx or OUT.pt2.

    A torch model goes to either; an ONNX model only to .onnx.
    """
    with working():
        from normswap import save
        from normswap.io.save import check_output
        from normswap.report.terminal import written_view

        check_output(output)
        (source,) = load_models([model], trust, arch)
        save(source, output)
    show(written_view(output, source))
