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
from normswap_cli.precision_options import Precision, precision_options


@click.command(
    epilog=examples(
        "normswap export timm:vit_tiny_patch16_224 -o vit.onnx",
        "normswap export clip-folder -o clip.pt2",
        "normswap export vit.onnx -o vit-fp16.onnx --dtype float16",
    )
)
@model_argument
@output_option
@precision_options
@trust_option
@arch_option
def export(model: str, output: Path, precision: Precision, trust: bool, arch: str | None) -> None:
    """Write MODEL to OUT.onnx or OUT.pt2, the same function or in half precision.

    A torch model goes to either; an ONNX model only to .onnx. What torch's exporter puts behind a
    softmax, IsNaN and Where, is left out where no row is masked as a whole.
    """
    with working():
        from normswap import save
        from normswap.io.save import check_output, without_softmax_guards
        from normswap.report.line import Line
        from normswap.report.terminal import conversion_view, written_view

        check_output(output)
        (source,) = load_models([model], trust, arch)
        source, notes = without_softmax_guards(source)
        conversion = precision.conversion(source, output)
        written = source if conversion is None else conversion.model
        save(written, output)
    show(*(Line(f"note: {note}") for note in notes))
    if conversion is not None:
        show(conversion_view(conversion))
    show(written_view(output, written))
