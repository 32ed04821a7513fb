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
        "normswap inspect vit.onnx --ranges --data images",
        "normswap inspect vit.onnx --target mnn",
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
    "--ranges",
    "with_ranges",
    is_flag=True,
    help="Run MODEL on DATA: how evenly the channels of what norms read and give are filled, which "
    "decides what int8 makes of them.",
)
@click.option(
    "--data",
    type=FileOrName(),
    metavar="DATA",
    help="--headroom, --ranges: inputs without labels: a folder of images, prepared as the model's "
    "own configuration says, or a .npy, .npz or .safetensors file of prepared inputs.",
)
@image_options
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="--headroom, --ranges: use at most that many of DATA, drawn at random (always the same).",
)
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="--headroom: write it as one page, with the binary places left along the depth.",
)
@click.option(
    "--target",
    metavar="TARGET",
    help="Tell which norms a target runs, which swap mends the others, and what else it lacks: a "
    "name as in `normswap swap --help`, or a capability file (.toml).",
)
@trust_option
@arch_option
def inspect(
    model: str,
    as_json: bool,
    as_mermaid: bool,
    input_shapes: tuple[str, ...],
    with_headroom: bool,
    with_ranges: bool,
    data: str | None,
    images: ImageOptions,
    samples: int | None,
    page: Path | None,
    target: str | None,
    trust: bool,
    arch: str | None,
) -> int:
    """List the norms of MODEL: what each one is, does and costs.

    Exit status 1 if there is none, but 0 with --mermaid, which then shows the model without them.
    """
    if as_json and as_mermaid:
        raise click.UsageError("--json and --mermaid exclude each other.")
    asked = ["--headroom"] * with_headroom + ["--ranges"] * with_ranges
    if as_mermaid and asked:
        raise click.UsageError(f"{asked[0]} and --mermaid exclude each other.")
    if target is not None and (as_mermaid or asked):
        other = "--mermaid" if as_mermaid else asked[0]
        raise click.UsageError(f"--target and {other} exclude each other.")
    if asked and data is None:
        raise click.UsageError(f"{asked[0]} needs real inputs: give --data.")
    if not asked and (data is not None or samples is not None):
        given = "--samples" if data is None else "--data"
        raise click.UsageError(f"{given} belongs to --headroom and --ranges.")
    if page is not None and not with_headroom:
        raise click.UsageError("--report belongs to --headroom.")
    measured = channels = judged = None
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
        if target is not None:
            from normswap.report.on_target import on_target, on_target_view

            judged = on_target(source, target)
        if asked:
            from normswap.io.atomic import check_writable
            from normswap.io.data import load_data

            if page is not None:
                check_writable(page)
            source = images.of(source)
            given_data = images.data(data, source, progress, samples)
            loaded = load_data(given_data, source, samples, progress=progress)
        if with_headroom:
            from normswap.precision.headroom import headroom

            measured = headroom(source, data=loaded, progress=progress)
        if measured is not None and page is not None:
            from normswap.parity.summary import provenance
            from normswap.report.html.headroom import write_headroom

            command = shlex.join(["normswap", *sys.argv[1:]])
            write_headroom(measured, page, provenance(command))
        if with_ranges:
            from normswap.precision.ranges import ranges

            channels = ranges(source, data=loaded, progress=progress)
    if as_mermaid:
        click.echo(diagram, nl=False)
        return 0
    if as_json:
        told = {"headroom": measured, "ranges": channels, "target": judged}
        more = {name: own.to_json() for name, own in told.items() if own is not None}
        show_json({**found.to_json(), **more})
    elif judged is not None:
        show(on_target_view(judged))
    elif not asked:
        show(inspection_view(found))
    else:
        from normswap.report.headroom import headroom_view
        from normswap.report.ranges import ranges_view

        if measured is not None:
            show(headroom_view(measured))
        if channels is not None:
            show(ranges_view(channels))
    if not found.sites:
        complain(f"{model}: no norm was found")
        return 1
    return 0
