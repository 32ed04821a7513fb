"""``normswap compare``: LayerNorm against BatchNorm, trained from the same weights."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

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
    trust_option,
)


@click.command(
    epilog=examples(
        "normswap compare -o study",
        "normswap compare 'timm:vit_tiny_patch16_224?pretrained=false' --data images -o study",
        "normswap compare --study deit --hours 3 -o deit",
    )
)
@click.argument("model", required=False, type=FileOrName())
@click.option(
    "--data",
    type=FileOrName(),
    metavar="DATA",
    help="Labelled samples: a folder with a subfolder of images for each class, a .npz or "
    ".safetensors file of inputs and 'labels', or glyphs:CLASSES, characters of this machine's "
    "fonts. A fifth of each class is kept back to test on, a fifth of the rest to choose rates on; "
    "of glyphs those of other fonts.",
)
@image_options
@click.option("--labels", metavar="FILE.npy", help="The labels of DATA that has none.")
@click.option(
    "--study",
    type=click.Choice(["grid", "deit"]),
    default="grid",
    show_default=True,
    help="grid: all rates with all seeds. deit: a ViT of DeiT's depth on glyphs:60, rates doubled "
    "until the first variant fails, more seeds around there and at the best rates, then without "
    "warm-up, with clipping, and in bfloat16.",
)
@click.option("--width", type=click.IntRange(min=8), help="Of the ViT of --study deit: 96.")
@click.option(
    "--patch",
    type=click.IntRange(min=2),
    help="The sides of its patches in pixels: 8, so 17 tokens. Of 4, DeiT's 65, a step takes three "
    "times as long, and more of them are needed.",
)
@click.option(
    "--variants",
    metavar="NAMES",
    default="ln,bn,bn-ffn,repbn",
    show_default=True,
    help="ln: as it is. bn: BatchNorm in place of every LayerNorm. bn-ffn: one more in each FFN. "
    "repbn: BN(x) + alpha * x, which takes over from LayerNorm bit by bit.",
)
@click.option(
    "--rates",
    metavar="NUMBERS",
    help="The highest learning rates, separated by commas: 0.002,0.008,0.03,0.1. Of --study deit "
    "the lowest one: 0.001.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    help="Runs of each variant at each rate: 4, of --study deit 3.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Updates of a run: 400.")
@click.option("--batch", type=click.IntRange(min=2), help="Samples per update: 32.")
@click.option(
    "--hours",
    type=float,
    help="Begin no run that would not end within so many hours; --resume goes on another time.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Runs at a time, of one thread each. By default as many as there are processors.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where figures, tables, models and runs go; it is made if it is not there.",
)
@click.option("--resume", is_flag=True, help="Go on with the comparison that FOLDER holds.")
@json_option
@trust_option
@arch_option
def compare(
    model: str | None,
    data: str | None,
    images: ImageOptions,
    labels: str | None,
    study: str,
    width: int | None,
    patch: int | None,
    variants: str,
    rates: str | None,
    seeds: int | None,
    steps: int | None,
    batch: int | None,
    hours: float | None,
    processes: int | None,
    output: Path,
    resume: bool,
    as_json: bool,
    trust: bool,
    arch: str | None,
) -> int:
    """Train MODEL with LayerNorm and with BatchNorm in its place, and compare what comes out.

    MODEL is untrained (timm:NAME?pretrained=false), a classifier; by default a small ViT on
    scikit-learn's digits, which takes 10 to 20 minutes on 2 cores. Each run is kept when it is
    finished: --resume goes on after an interrupt.
    """
    numbers = None if rates is None else _numbers(rates)
    with working(lines=True) as progress:
        import normswap
        from normswap.train.study.page import comparison_view

        named = [] if model is None else [model]
        start = next(iter(load_models(named, trust, arch)), None)
        start = None if start is None else images.of(start)
        found = normswap.compare(
            output,
            start,
            data=data if start is None else images.data(data, start, progress, None),
            labels=labels,
            study=study,
            width=width,
            patch=patch,
            variants=[name.strip() for name in variants.split(",")],
            rates=numbers,
            seeds=seeds,
            steps=steps,
            batch=batch,
            hours=hours,
            processes=processes,
            resume=resume,
            command=shlex.join(["normswap", *sys.argv[1:]]),
            progress=progress,
        )
    if as_json:
        show_json(found.to_json())
    else:
        show(comparison_view(found, output))
    return 0


def _numbers(rates: str) -> list[float]:
    try:
        return [float(word) for word in rates.split(",")]
    except ValueError as error:
        raise click.BadParameter(
            f"'{rates}' is not a list of numbers such as 0.002,0.01", param_hint="--rates"
        ) from error
