"""Which parts of the package know of which others."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import normswap

_ROOT = Path(normswap.__file__).parent


def _imports(part: str) -> dict[str, set[str]]:
    """The modules that every file of a part imports, at its top or within functions."""
    known: dict[str, set[str]] = {}
    for file in sorted((_ROOT / part).rglob("*.py")):
        known[str(file.relative_to(_ROOT))] = _imported(file)
    assert known
    return known


def _imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize(
    ("part", "others"),
    [
        ("passes", ("torch", "onnx", "onnx_ir", "onnxruntime", "openvino")),
        ("passes", ("normswap.lowering", "normswap.runtimes")),
        ("graph", ("normswap.lowering", "normswap.passes", "normswap.precision", "normswap.io")),
        ("norms", ("normswap.lowering", "normswap.passes", "normswap.precision")),
        ("norms", ("torch", "onnx_ir")),
        ("precision", ("torch", "onnx", "onnx_ir", "onnxruntime")),
        ("precision", ("normswap.lowering", "normswap.passes", "normswap.report")),
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


def test_no_modules_import_each_other() -> None:
    """However far around, and within functions too."""
    files = {_dotted(file): file for file in _ROOT.rglob("*.py")}
    lists = {name for name, file in files.items() if file.with_suffix(".pyi").exists()}
    imports: dict[str, set[str]] = {name: set() for name in files}
    for name, file in files.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = {f"{node.module}.{alias.name}" for alias in node.names}
                imports[name] |= {m if m in files else node.module for m in modules}
    TopologicalSorter({n: (m & files.keys()) - lists for n, m in imports.items()}).prepare()


def _dotted(file: Path) -> str:
    parts = file.relative_to(_ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
