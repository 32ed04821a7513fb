"""``normswap validate``: how close two models are."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Literal

import click

from normswap_cli.console import show, show_json, working
from normswap_cli.options import (
    FileOrName,
    ImageOptions,
    arch_option,
    examples,
    image_options,
    json_option,
    limit_option,
    load_models,
    trust_option,
)

_RUNTIMES = click.Choice(["torch", "onnxruntime", "openvino"])


@click.command(
    epilog=examples(
        "normswap validate vit.onnx fused.onnx",
        "normswap validate vit.pt2 free.onnx --contract approximate --data test",
        "normswap validate vit.onnx vit.onnx --simulate float16 --data test",
        "normswap validate vit.onnx free.onnx --simulate int8 --data test --calibration train",
        "normswap validate vit.onnx fused.onnx --report report.html",
    )
)
@click.argument("reference", type=FileOrName())
@click.argument("candidate", type=FileOrName())
@click.option(
    "--data",
    type=FileOrName(),
    metavar="DATA",
    help="Inputs to compare on besides the built-in probes: a folder of images, or a .npy, .npz or "
    ".safetensors file.",
)
@image_options
@click.option(
    "--contract",
    type=click.Choice(["exact", "approximate"]),
    help="exact: as close to REFERENCE in float64 as REFERENCE itself is, up to a factor of two. "
    "approximate: figures of how alike the outputs are. By default exact; approximate with "
    "--simulate.",
)
@click.option(
    "--effort",
    type=click.Choice(["quick", "full"]),
    default="quick",
    show_default=True,
    help="Of the exact contract. quick: as few rows of each kind of probe as show what it is for, "
    "and fewer of costly models. full: eight rows of every kind.",
)
@click.option(
    "--simulate",
    type=click.Choice(
        ["float16", "bfloat16", "int8", "int8-per-channel", "w4a8", "w4a8-per-channel"]
    ),
    help="Run CANDIDATE with every value rounded to a half-precision format, as a device without "
    "float32 accumulation computes, and say where it is not finite first. int8, and w4a8 with "
    "weights of four bits: with weights and what products read rounded to integers, as a quantiser "
    "would make it.",
)
@click.option(
    "--calibration",
    type=FileOrName(),
    metavar="DATA",
    help="--simulate int8, w4a8: inputs whose ranges the integers cover. By default --data.",
)
@click.option("--reference-runtime", type=_RUNTIMES, help="Where to run REFERENCE.")
@click.option(
    "--candidate-runtime",
    type=_RUNTIMES,
    help="Where to run CANDIDATE. By default both run in torch, or, for .onnx, in ONNX Runtime "
    "without its optimisations, which may change results.",
)
@limit_option
@click.option(
    "--certify",
    is_flag=True,
    help="Also prove that both are the same function in real arithmetic. Exit status 1 where that "
    "cannot be.",
)
@click.option("--bisect", is_flag=True, help="Also find the first place at which they part.")
@click.option(
    "--reproducer",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Where --bisect writes the inputs that show it, for --data. By default named after "
    "CANDIDATE, in this folder.",
)
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write all of it as one page, with times and memory.",
)
@click.option("--bench/--no-bench", default=True, help="Whether --report takes times.")
@json_option
@trust_option
@arch_option
def validate(
    reference: str,
    candidate: str,
    data: str | None,
    images: ImageOptions,
    contract: Literal["exact", "approximate"] | None,
    effort: Literal["quick", "full"],
    simulate: str | None,
    calibration: str | None,
    reference_runtime: str | None,
    candidate_runtime: str | None,
    limit: float,
    certify: bool,
    bisect: bool,
    reproducer: Path | None,
    page: Path | None,
    bench: bool,
    as_json: bool,
    trust: bool,
    arch: str | None,
) -> int:
    """Compare CANDIDATE with REFERENCE: at their outputs and at every norm.

    Exit status 1 if the contract is not met, or --certify proves nothing.
    """
    if reproducer is not None and not bisect:
        raise click.UsageError("--reproducer is written by --bisect")
    with working() as progress:
        import normswap
        from normswap.io.atomic import check_writable
        from normswap.report.html.page import write_html
        from normswap.report.terminal import validation_view

        reproducer = reproducer or _reproducer_of(candidate)
        if page is not None:
            check_writable(page)
        if bisect:
            check_writable(reproducer)
        before, after = load_models([reference, candidate], trust, arch)
        before = images.of(before)
        report = normswap.validate(
            before,
            after,
            data=images.data(data, before, progress, None),
            contract=contract,
            effort=effort,
            simulate=simulate,
            calibration=calibration and images.data(calibration, before, progress, None),
            bisect=bisect,
            certify=certify,
            reproducer=reproducer,
            reference_runtime=reference_runtime,
            candidate_runtime=candidate_runtime,
            limit=limit,
            command=shlex.join(["normswap", *sys.argv[1:]]),
            progress=progress,
        )
        if page is not None:
            asked = dict.fromkeys(filter(None, (reference_runtime, candidate_runtime)))
            times = None
            if bench:
                models, runtimes = [before, after], [*asked] or None
                times = normswap.bench(models, runtimes=runtimes, limit=limit, progress=progress)
            write_html(report, page, times)
    if as_json:
        show_json(report.to_json())
    else:
        show(validation_view(report))
    proven = report.certificate is None or report.certificate.certified
    return 0 if report.passed and proven else 1


def _reproducer_of(candidate: str) -> Path:
    name = re.sub(r"[^\w.-]+", "-", Path(candidate).stem or "candidate")
    return Path(f"{name}-reproducer.npz")
