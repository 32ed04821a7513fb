"""The notebook runs from its first cell to its last, and shows something behind each."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "tutorial.ipynb"


def _shown(code: str, names: dict[str, Any]) -> Any:
    """Runs a cell; the value of its last expression, which a notebook shows."""
    body = ast.parse(code)
    last = body.body.pop() if isinstance(body.body[-1], ast.Expr) else None
    exec(compile(body, "cell", "exec"), names)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    tables = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert (cell["execution_count"], cell["outputs"]) == (None, [])  # nothing generated
        shown = _shown("".join(cell["source"]), names)
        tables += hasattr(shown, "_repr_html_") and "<pre" in shown._repr_html_()
    assert tables == 6
    assert (tmp_path / "norm-free.pt2").is_file()
