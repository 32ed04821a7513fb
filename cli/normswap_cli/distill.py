"""``normswap distill``: a swapped model learns to be its original again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from normswap_cli.console import show, show_json, working
from normswap_cli.options import (
    FileOrName,
    ImageOptions,
    arch_option,
    examples,
    image_options,
    json_option,
    load_models,
    output_option,
    trust_option,
)

_EVERY_SECONDS = 10.0  # a line of progress where there is no terminal


@click.command(
    epilog=examples(
        "normswap distill student.pt2 --teacher vit.pt2 -o trained.pt2 --data images",
    )
)
@click.argument("student", type=FileOrName())
@click.option("--teacher", required=True, metavar="MODEL", help="The original, before the swap.")
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="Inputs, without labels: a folder of images, a .npy, .npz or .safetensors file, or "
    "WebDataset shards, as in 'shards-{0000..0003}.tar'.",
)
@image_options
@output_option
@click.option(
    "--labels",
    is_flag=True,
    help="Also learn the labels of DATA: 'labels' in .npz and .safetensors, a classifier's "
    "subfolders, .cls in shards.",
)
@click.option("--samples", type=click.IntRange(min=2), help="Use at most that many of DATA.")
@click.option(
    "--progressive",
    is_flag=True,
    help="Start with the original's LayerNorms, and go over to BatchNorms in the first half of the "
    "steps; predicted scales taper to 1 and are gone. By default all is there at once.",
)
@click.option(
    "--residual", is_flag=True, help="With --progressive: BN(x) + alpha x (RepBN) on the way."
)
@click.option(
    "--steps", type=click.IntRange(min=1), help="Updates. By default 20 epochs, 200 to 20,000."
)
@click.option(
    "--batch", type=click.IntRange(min=1), help="Samples per update, of all processes: 64."
)
@click.option("--learning-rate", type=float, help="The highest: 0.001.")
@click.option("--warm-up", type=click.IntRange(min=0), help="Steps: a tenth of all.")
@click.option("--weight-decay", type=float, help="Of matrices: 0.05.")
@click.option("--clip", type=float, help="The norm that gradients are scaled down to: 1.")
@click.option("--accumulate", type=click.IntRange(min=1), help="Parts that a batch runs in: 1.")
@click.option("--ema", type=float, help="Average the weights with this decay, as 0.999.")
@click.option("--seed", type=int, help="Of the order of samples: 0.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), help="float32.")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Keep the last checkpoint there.",
)
@click.option(
    "--every", type=click.IntRange(min=1), default=100, show_default=True, help="Steps between."
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint, if there is one.")
@click.option(
    "--log",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a line of JSON for each step.",
)
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Write how close the result is to the teacher, and the loss, as one HTML page.",
)
@json_option
@trust_option
@arch_option
def distill(
    student: str,
    teacher: str,
    data: str,
    images: ImageOptions,
    output: Path,
    labels: bool,
    samples: int | None,
    progressive: bool,
    residual: bool,
    checkpoints: Path | None,
    every: int,
    resume: bool,
    log: Path | None,
    page: Path | None,
    as_json: bool,
    trust: bool,
    arch: str | None,
    **training: Any,
) -> int:
    """Train STUDENT, a model whose norms were swapped, to give what the original gives.

    No labels are needed. Every batch is whole: where an epoch ends in the middle of one, the next
    epoch fills it. Started by torchrun, the processes share the batches. The result has its
    BatchNorms still; normswap fold takes them out.
    """
    if residual and not progressive:
        raise click.UsageError("--residual belongs to --progressive.")
    if images.skip_bad and not (Path(data).is_dir() or data.endswith(".tar")):
        raise click.UsageError("--skip-bad belongs to --data with a folder of images or shards.")
    with working(lines=True) as progress:
        import normswap
        from normswap import distributed
        from normswap.io.atomic import check_writable
        from normswap.io.save import check_output
        from normswap.report.terminal import distillation_view, written_view
        from normswap.train.distill import distill
        from normswap.train.log import JsonLines, throttled

        with distributed.process_group():
            first = distributed.rank() == 0
            if first:
                check_output(output)
                if page is not None:
                    check_writable(page)
            pupil, original = load_models([student, teacher], trust, arch)
            pupil = images.of(pupil)
            result = distill(
                pupil,
                original,
                data,
                samples=samples,
                skip_bad=images.skip_bad,
                labels=labels,
                progressive=progressive,
                residual=residual,
                checkpoints=checkpoints,
                every=every,
                resume=resume,
                log=JsonLines(log, keep=resume) if log is not None and first else None,
                progress=throttled(progress, _EVERY_SECONDS) if first else None,
                about={"teacher": teacher},
                **training,
            )
        if first:
            normswap.save(result.model, output)
            if page is not None:
                from normswap.report.html.page import write_distillation

                write_distillation(result, page)
    if first and as_json:
        show_json(result.to_json() | {"output": str(output)})
    elif first:
        show(distillation_view(result), written_view(output, result.model))
    return 0
