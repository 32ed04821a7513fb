"""Public names that are imported when they are first used.

Most of them need torch, which takes longer to import than an ONNX model takes to rewrite. A package
lists its names in a stub, ``__init__.pyi``, which type checkers and editors read as well.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_IMPORT = re.compile(r"^from (\S+) import (\w+) as \2$", re.MULTILINE)


def public_names(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__`` (PEP 562), ``__dir__`` and ``__all__`` of a package, from its stub.

    ``package``: its ``__name__``. ``file``: its ``__file__``. The stub has one line for each name:
    ``from module import name as name``.
    """
    modules = {name: module for module, name in _IMPORT.findall(Path(file + "i").read_text())}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(importlib.import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get, names, sorted(modules)
