"""``normswap inspect``: the norms of a model."""

from __future__ import annotations

import click

from normswap_cli.console import complain, show, show_json, working
from normswap_cli.options import (
    arch_option,
    examples,
    json_option,
    load_models,
    model_argument,
    trust_option,
)


@click.command(
    epilog=examples(
        "normswap inspect vit.onnx",
        "normswap inspect clip-folder --json",
        "normswap inspect tuned.pth --arch 'timm:vit_tiny_patch16_224?num_classes=10'",
        "normswap inspect vit.pt2 --mermaid > vit.mmd",
    )
)
@model_argument
@json_option
@click.option(
    "--mermaid",
    "as_mermaid",
    is_flag=True,
    help="Print a Mermaid flowchart of the model with its norms and nothing else.",
)
@click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    metavar="[NAME=]SIZES",
    help="Count at sizes like 1x3x224x224; NAME is needed unless it is the only input or the "
    "only image. May be repeated.",
)
@trust_option
@arch_option
def inspect(
    model: str,
    as_json: bool,
    as_mermaid: bool,
    input_shapes: tuple[str, ...],
    trust: bool,
    arch: str | None,
) -> int:
    """List the norms of MODEL: what each one is, does and costs.

    Exit status 1 if there is none, but 0 with --mermaid, which then shows the model without them.
    """
    if as_json and as_mermaid:
        raise click.UsageError("--json and --mermaid exclude each other.")
    with working():
        from normswap.report.input_shapes import named_shapes, parse_input_shape
        from normswap.report.inspection import inspection
        from normswap.report.mermaid import model_diagram
        from normswap.report.terminal import inspection_view

        given = [parse_input_shape(text) for text in input_shapes]
        (source,) = load_models([model], trust, arch)
        shapes = named_shapes(source, given)
        if as_mermaid:
            diagram = model_diagram(source, shapes)
        else:
            found = inspection(source, shapes)
    if as_mermaid:
        click.echo(diagram, nl=False)
        return 0
    if as_json:
        show_json(found.to_json())
    else:
        show(inspection_view(found))
    if not found.sites:
        complain(f"{model}: no norm was found")
        return 1
    return 0
