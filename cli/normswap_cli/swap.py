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
from normswap_cli.targets import Target, check_options

if TYPE_CHECKING:
    from normswap.passes import Pass


@click.command()
@model_argument
@output_option
@click.option(
    "--to",
    "target",
    required=True,
    type=Target(),
    help="fused: exact, a norm that is spelled out becomes one operator. "
    "batchnorm: fitted to --data, folds into the weights.",
)
@sites_option
@click.option(
    "--data",
    metavar="DATA",
    help="batchnorm: calibration inputs, a .npy, .npz or .safetensors file.",
)
@click.option("--samples", type=click.IntRange(min=1), help="batchnorm: use that many of DATA.")
@click.option(
    "--fit",
    type=click.Choice(["copy", "moments"]),
    help="batchnorm: keep gamma and beta, or match the mean and variance of the original's "
    "outputs (the default).",
)
@click.option("--ffn-batchnorm", is_flag=True, help="batchnorm: also put one into each FFN.")
@click.option("--fold", "then_fold", is_flag=True, help="batchnorm: fold the new norms away.")
@json_option
@trust_option
def swap(
    model: str,
    output: Path,
    target: type[Pass],
    sites: str | None,
    data: str | None,
    samples: int | None,
    fit: str | None,
    ffn_batchnorm: bool,
    then_fold: bool,
    as_json: bool,
    trust: bool,
) -> int:
    """Put other norms in place of those of MODEL.

    Without --sites all norms are taken; in a CLIP, --to batchnorm takes the image tower's. Exit
    status 1, and nothing written, if MODEL has no norm or one that --sites asks for is skipped.
    """
    given = {"data": data, "samples": samples, "fit": fit, "ffn_batchnorm": ffn_batchnorm}
    options = check_options(target, {**given, "fold": then_fold})
    options.pop("fold", None)
    with working() as progress:
        from normswap import api
        from normswap.io.save import check_output
        from normswap.report.rewriting import Rewriting

        check_output(output)
        source = api.load(model, trust=trust)
        swapped = api.swap(source, to=target.target, sites=sites, progress=progress, **options)
        steps = [(target.target, swapped)]
        if then_fold:
            steps.append(("fold", api.fold(swapped.model)))
        report = save_if_passed(Rewriting(source, steps, sites is not None), output)
    return tell(report, output, "no norm was found", as_json)
