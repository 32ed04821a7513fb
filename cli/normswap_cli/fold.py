"""``normswap fold``: BatchNorms into the weights around them."""

from __future__ import annotations

from pathlib import Path

import click

from normswap_cli.console import working
from normswap_cli.options import (
    arch_option,
    certify_option,
    examples,
    json_option,
    load_models,
    model_argument,
    output_option,
    sites_option,
    trust_option,
)
from normswap_cli.precision_options import Precision, precision_options
from normswap_cli.rewrite import save_if_passed, tell


@click.command(
    epilog=examples(
        "normswap fold trained.pt2 -o folded.pt2",
        "normswap fold cnn.onnx -o cnn.onnx",
    )
)
@model_argument
@output_option
@sites_option
@certify_option
@precision_options
@json_option
@trust_option
@arch_option
def fold(
    model: str,
    output: Path,
    sites: str | None,
    certify: bool,
    precision: Precision,
    as_json: bool,
    trust: bool,
    arch: str | None,
) -> int:
    """Fold the evaluation-mode BatchNorms of MODEL into the neighbouring weights.

    The function stays the same. Exit status 1, and nothing written, if there is none or if one
    that --sites asks for cannot be folded.
    """
    with working():
        import normswap
        from normswap.io.save import check_output
        from normswap.report.rewriting import Rewriting

        check_output(output)
        (source,) = load_models([model], trust, arch)
        steps = [("fold", normswap.fold(source, sites=sites, certify=certify))]
        report = save_if_passed(Rewriting(source, steps, sites is not None), output, precision)
    return tell(report, output, "no BatchNorm was found", as_json)
