"""The README.md of the demo's folder."""

from __future__ import annotations

from normswap.demo.results import DemoResults
from normswap.demo.table import Rows, tables


def readme(results: DemoResults) -> str:
    """What the demo found and which files it wrote, in Markdown."""
    parts = [
        "# What `normswap demo` found",
        "Two small models trained with LayerNorm on scikit-learn's digits (their cards are in "
        "normswap/assets), as torch graphs (fx) and as ONNX.",
    ]
    for rows in tables(results):
        parts += [f"## {rows.title}", _table(rows), rows.remark]
    files = [f"- [{path}]({path}): {what}" for path, what in results.files.items()]
    parts += ["## Files", "\n".join(files), "- [results.json](results.json): these figures"]
    return "\n\n".join(parts) + "\n"


def _table(rows: Rows) -> str:
    lines = [rows.head, ["---"] * len(rows.head), *rows.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
