"""Which parts of the package know of which others."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import normswap

_ROOT = Path(normswap.__file__).parent


def _imports(part: str) -> dict[str, set[str]]:
    """The modules that every file of a part imports, at its top or within functions."""
    known: dict[str, set[str]] = {}
    for file in sorted((_ROOT / part).rglob("*.py")):
        names = known[str(file.relative_to(_ROOT))] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
    assert known
    return known


@pytest.mark.parametrize(
    ("part", "others"),
    [
        ("passes", ("torch", "onnx", "onnx_ir", "onnxruntime", "openvino")),
        ("passes", ("normswap.lowering", "normswap.runtimes")),
        ("graph", ("normswap.lowering", "normswap.passes", "normswap.io")),
        ("norms", ("normswap.lowering", "normswap.passes", "torch", "onnx_ir")),
    ],
)
def test_a_part_knows_nothing_of_others(part: str, others: tuple[str, ...]) -> None:
    for file, names in _imports(part).items():
        known = {n for n in names for other in others if n == other or n.startswith(f"{other}.")}
        assert not known, file


def test_lowering_knows_the_interface_of_passes_alone() -> None:
    for file, names in _imports("lowering").items():
        inside = {n for n in names if n.startswith("normswap.passes.")}
        assert all(n.startswith("normswap.passes.base") for n in inside), file


def test_passes_do_not_ask_what_kind_of_graph_it_is() -> None:
    for file in sorted((_ROOT / "passes").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"(model|graph)\.kind\b|\bfx\b", text), file
