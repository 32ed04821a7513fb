"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

model_argument = click.argument("model")
output_option = click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="The file to write, .onnx or .pt2. It may be MODEL itself.",
)
sites_option = click.option(
    "--sites",
    metavar="PATTERN",
    help="Globs on site names, role=ROLE and tower=TOWER, separated by commas.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)
trust_option = click.option(
    "--trust", is_flag=True, help="Let the pickled parts of a .pt2 file run code."
)
