"""``normswap validate``: how close two models are."""

from __future__ import annotations

from typing import Literal

import click

from normswap_cli.console import show, show_json, working
from normswap_cli.options import json_option, trust_option


@click.command()
@click.argument("reference")
@click.argument("candidate")
@click.option(
    "--data",
    metavar="DATA",
    help="Inputs to compare on besides the built-in probes: a folder of images, or a .npy, .npz or "
    ".safetensors file.",
)
@click.option(
    "--contract",
    type=click.Choice(["exact", "approximate"]),
    default="exact",
    show_default=True,
    help="exact: as close to REFERENCE in float64 as REFERENCE itself is, up to a factor of two. "
    "approximate: figures of how alike the outputs are.",
)
@json_option
@trust_option
def validate(
    reference: str,
    candidate: str,
    data: str | None,
    contract: Literal["exact", "approximate"],
    as_json: bool,
    trust: bool,
) -> int:
    """Compare the outputs of CANDIDATE with those of REFERENCE.

    Exit status 1 if the contract is not met.
    """
    with working() as progress:
        import normswap
        from normswap.report.validation import validation_view

        before = normswap.load(reference, trust=trust)
        after = normswap.load(candidate, trust=trust)
        report = normswap.validate(before, after, data=data, contract=contract, progress=progress)
    if as_json:
        show_json(report.to_json())
    else:
        show(validation_view(report))
    return 0 if report.passed else 1
