"""How results look in Python: ``print(result)``, ``result.summary()``, and in a notebook."""

from __future__ import annotations

import importlib
import io
from typing import Any, ClassVar

_WIDTH = 200  # a table takes what it needs of it
_HTML = '<pre style="overflow-x:auto;line-height:1.25;font-family:monospace">{code}</pre>'


class Shown:
    """Results that people look at.

    ``view``: "module:function" of what makes a rich renderable of it. It is named instead of
    imported because views know of all results, and most programs need none.
    """

    view: ClassVar[str]

    def summary(self) -> str:
        """What the command line would print of it, as plain text.

        Examples:
            >>> print(swap(model, to="fused").summary())
        """
        from rich.console import Console

        console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, legacy_windows=False)
        console.print(function(self.view)(self))
        printed: str = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in printed.splitlines())

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=_WIDTH, record=True, legacy_windows=False)
        console.print(function(self.view)(self))
        return console.export_html(inline_styles=True, code_format=_HTML)


class Diagram(str):
    """A Mermaid flowchart, which notebooks draw.

    Examples:
        >>> load("vit.onnx").diagram()
    """

    __slots__ = ()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        fenced = f"```mermaid\n{self}```\n"
        return {"text/vnd.mermaid": str(self), "text/markdown": fenced, "text/plain": str(self)}


def function(name: str) -> Any:
    """The function that "module:function" names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
