"""``normswap swap``: other norms in place of a model's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from normswap_cli.console import working
from normswap_cli.options import (
    json_option,
    model_argument,
    output_option,
    sites_option,
    trust_option,
)
from normswap_cli.rewrite import save_if_passed, tell
from normswap_cli.swap_options import To, check_options

if TYPE_CHECKING:
    from normswap.passes import Pass


@click.command()
@model_argument
@output_option
@click.option(
    "--to",
    "kind",
    required=True,
    type=To(),
    help="fused: exact, a norm becomes the operator that is best for --target. "
    "rmsnorm: exact, the residual stream is centred by its weights. "
    "batchnorm: a scale and shift per channel; affine: a full matrix; both are fitted to --data "
    "and fold into the weights.",
)
@sites_option
@click.option(
    "--target",
    type=click.Choice(["onnxruntime-cpu", "onnxruntime-cuda", "openvino", "generic"]),
    help="fused: what the model is made for. By default ONNX's standard operators, and in torch "
    "kernels that work in place.",
)
@click.option(
    "--tune",
    is_flag=True,
    help="fused: measure the forms of every norm on this machine, and take what wins.",
)
@click.option(
    "--fold-affine",
    is_flag=True,
    help="fused, rmsnorm: fold gamma and beta into what reads the norms.",
)
@click.option(
    "--data",
    metavar="DATA",
    help="batchnorm, affine: calibration inputs without labels: a folder of images, prepared as "
    "the model's own configuration says, or a .npy, .npz or .safetensors file of prepared inputs.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="batchnorm, affine: use at most that many of DATA, drawn at random (always the same).",
)
@click.option(
    "--tokens",
    type=click.Choice(["all", "class", "position"]),
    help="batchnorm, affine: fit all tokens together (the default), class and register tokens "
    "apart, or each position; the last two leave a scale and shift per token.",
)
@click.option(
    "--ensure",
    metavar="METRIC>=NUMBER",
    help="batchnorm, affine: keep as few norms as it takes for the result to agree with MODEL on "
    "a fifth of DATA: top1 (0 to 1), cosine, or sqnr (dB).",
)
@click.option(
    "--fit",
    type=click.Choice(["copy", "moments", "least-squares"]),
    help="batchnorm: keep gamma and beta, match the mean and variance of the original's outputs "
    "(the default), or come nearest to these outputs.",
)
@click.option("--ffn-batchnorm", is_flag=True, help="batchnorm: also put one into each FFN.")
@click.option(
    "--ffn-position",
    type=click.Choice(["before", "after"]),
    help="batchnorm: before (the default) or after the FFN's activation.",
)
@click.option(
    "--refit-writers",
    is_flag=True,
    help="affine: also fit what writes to the residual stream (attention out-projection, second "
    "linear layer of the FFN) to the original's stream.",
)
@click.option(
    "--fold", "then_fold", is_flag=True, help="batchnorm, affine: fold what was swapped in."
)
@json_option
@trust_option
def swap(
    model: str,
    output: Path,
    kind: type[Pass],
    sites: str | None,
    target: str | None,
    tune: bool,
    fold_affine: bool,
    data: str | None,
    samples: int | None,
    tokens: str | None,
    ensure: str | None,
    fit: str | None,
    ffn_batchnorm: bool,
    ffn_position: str | None,
    refit_writers: bool,
    then_fold: bool,
    as_json: bool,
    trust: bool,
) -> int:
    """Put other norms in place of those of MODEL.

    Without --sites all norms are taken; in a CLIP, --to batchnorm and affine take the image
    tower's. Exit status 1, and nothing written, if MODEL has no norm, one that --sites asks for is
    skipped, or --ensure leaves none to swap.
    """
    given = {
        "target": target,
        "tune": tune,
        "data": data,
        "samples": samples,
        "tokens": tokens,
        "ensure": ensure,
        "fit": fit,
        "ffn_batchnorm": ffn_batchnorm,
        "ffn_position": ffn_position,
        "refit_writers": refit_writers,
    }
    options = check_options(kind, {**given, "fold": then_fold, "fold_affine": fold_affine})
    options.pop("fold", None)
    options.pop("fold_affine", None)
    with working() as progress:
        import normswap
        from normswap.io.save import check_output
        from normswap.report.rewriting import Rewriting
        from normswap.torchrun import joined

        check_output(output)
        source = normswap.load(model, trust=trust)
        with joined() as first:  # under torchrun each process fits to its share of the data
            swapped = normswap.swap(source, to=kind.to, sites=sites, progress=progress, **options)
        if not first:
            return 0
        steps = [(kind.to, swapped)]
        if then_fold:
            steps.append(("fold", normswap.fold(swapped.model)))
        if fold_affine:
            steps.append(("fold-affine", normswap.fold_affine(swapped.model)))
        report = save_if_passed(Rewriting(source, steps, sites is not None), output)
    return tell(report, output, "no norm was found", as_json)
