"""The results of the demo as rich renderables."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from normswap.demo.results import DemoResults
from normswap.demo.table import tables
from normswap.report.terminal import table


def demo_view(results: DemoResults) -> RenderableType:
    """The tables with what they mean, and where the files are."""
    parts: list[RenderableType] = []
    for rows in tables(results):
        made = table(*rows.head, numeric=rows.head[2:])
        for cells in rows.rows:
            made.add_row(*cells)
        parts += [Text(rows.title, "bold"), made, Text(rows.remark, "dim"), Text()]
    count = len(results.files)
    parts += [Text(f"{count} files in {results.folder}, {results.seconds:.0f} s")]
    for variant in results.variants:
        if not variant.passed:
            parts.append(Text(f"FAILED: {variant.model} as {variant.kind}", "bold red"))
    return Group(*parts)
