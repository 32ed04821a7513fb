"""``normswap inspect``: the norms of a model."""

from __future__ import annotations

import click

from normswap_cli.console import complain, show, show_json, working
from normswap_cli.options import json_option, model_argument, trust_option


@click.command()
@model_argument
@json_option
@trust_option
def inspect(model: str, as_json: bool, trust: bool) -> int:
    """List the norms of MODEL: what each one is, does and costs.

    Exit status 1 if there is none.
    """
    with working():
        from normswap import load
        from normswap.report.inspection import inspection
        from normswap.report.terminal import inspection_view

        found = inspection(load(model, trust=trust))
    if as_json:
        show_json(found.to_json())
    else:
        show(inspection_view(found))
    if not found.sites:
        complain(f"{model}: no norm was found")
        return 1
    return 0
