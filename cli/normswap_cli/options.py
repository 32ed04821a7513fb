"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem


def examples(*lines: str) -> str:
    """Lines to type, as the end of a command's help text."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class FileOrName(click.ParamType):  # type: ignore[type-arg]
    """What a MODEL or DATA is called. Shells complete the paths among such names."""

    name = "text"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


model_argument = click.argument("model", type=FileOrName())
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
    help="Alternatives separated by commas, each of terms that must all hold, separated by "
    "spaces: globs on site names, role=ROLE, tower=TOWER.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)
trust_option = click.option(
    "--trust", is_flag=True, help="Let the pickled parts of a .pt2 file run code."
)
