"""``normswap inspect``: the norms of a model."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from normswap_cli.console import complain, show, show_json, working
from normswap_cli.options import (
    FileOrName,
    ImageOptions,
    arch_option,
    examples,
    image_options,
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
        "normswap inspect vit.onnx --headroom --data images",
        "normswap inspect vit.onnx --headroom --data images --report headroom.html",
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
@click.option(
    "--headroom",
    "with_headroom",
    is_flag=True,
    help="Run MODEL on DATA: how large its values become, and which of them half precision does "
    "not hold.",
)
@click.option(
    "--data",
    type=FileOrName(),
    metavar="DATA",
    help="--headroom: inputs without labels: a folder of images, prepared as the model's own "
    "configuration says, or a .npy, .npz or .safetensors file of prepared inputs.",
)
@image_options
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="--headroom: use at most that many of DATA, drawn at random (always the same).",
)
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="--headroom: write it as one page, with the binary places left along the depth.",
)
@trust_option
@arch_option
def inspect(
    model: str,
    as_json: bool,
    as_mermaid: bool,
    input_shapes: tuple[str, ...],
    with_headroom: bool,
    data: str | None,
    images: ImageOptions,
    samples: int | None,
    page: Path | None,
    trust: bool,
    arch: str | None,
) -> int:
    """List the norms of MODEL: what each one is, does and costs.

    Exit status 1 if there is none, but 0 with --mermaid, which then shows the model without them.
    """
    if as_json and as_mermaid:
        raise click.UsageError("--json and --mermaid exclude each other.")
    if as_mermaid and with_headroom:
        raise click.UsageError("--headroom and --mermaid exclude each other.")
    if with_headroom and data is None:
        raise click.UsageError("--headroom needs real inputs: give --data.")
    options = {"--data": data, "--samples": samples, "--report": page}
    given = next((name for name, value in options.items() if value is not None), None)
    if not with_headroom and given is not None:
        raise click.UsageError(f"{given} belongs to --headroom.")
    measured = None
    with working() as progress:
        from normswap.report.input_shapes import named_shapes, parse_input_shape
        from normswap.report.inspection import inspection
        from normswap.report.mermaid import model_diagram
        from normswap.report.terminal import inspection_view

        sizes = [parse_input_shape(text) for text in input_shapes]
        (source,) = load_models([model], trust, arch)
        shapes = named_shapes(source, sizes)
        if as_mermaid:
            diagram = model_diagram(source, shapes)
        else:
            found = inspection(source, shapes)
        if with_headroom:
            from normswap.io.atomic import check_writable
            from normswap.parity.summary import provenance
            from normswap.precision.headroom import headroom
            from normswap.report.html.headroom import write_headroom

            if page is not None:
                check_writable(page)
            source = images.of(source)
            loaded = images.data(data, source, progress, samples)
            measured = headroom(source, data=loaded, samples=samples, progress=progress)
            if page is not None:
                command = shlex.join(["normswap", *sys.argv[1:]])
                write_headroom(measured, page, provenance(command))
    if as_mermaid:
        click.echo(diagram, nl=False)
        return 0
    if as_json:
        more = {} if measured is None else {"headroom": measured.to_json()}
        show_json({**found.to_json(), **more})
    elif measured is None:
        show(inspection_view(found))
    else:
        from normswap.report.headroom import headroom_view

        show(headroom_view(measured))
    if not found.sites:
        complain(f"{model}: no norm was found")
        return 1
    return 0
