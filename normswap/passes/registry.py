"""The passes that ``swap --to`` offers: the files here and in ``dialects``, and other packages'.

Another package offers a pass through an entry point of the group ``normswap.passes``::

    [project.entry-points."normswap.passes"]
    double = "my_package:Double"
"""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from normswap.errors import NormswapError
from normswap.passes.base import Pass

GROUP = "normswap.passes"
_log = logging.getLogger(__name__)


def pass_called(to: str) -> type[Pass] | None:
    """The pass that ``swap`` offers as ``to``, which names its file: ``rmsnorm`` is in
    ``rms_norm.py``. No other pass is imported where it is found.

    Raises NormswapError for a pass of another package that cannot be loaded.
    """
    for name in _modules():
        if name.rpartition(".")[2].replace("_", "") == to.replace("-", ""):
            return _in_module(name).get(to)
    for entry in entry_points(group=GROUP, name=to):
        return _loaded(entry)
    return None


def passes() -> dict[str, type[Pass]]:
    """All passes that ``swap`` offers, by their word; this imports all of them.

    A pass of another package that cannot be loaded is left out, with a warning in the log.
    """
    found: dict[str, type[Pass]] = {}
    for entry in entry_points(group=GROUP):
        try:
            found[entry.name] = _loaded(entry)
        except NormswapError as error:
            _log.warning("%s", error)
    for name in _modules():
        found |= _in_module(name)
    return dict(sorted(found.items()))


def _modules() -> list[str]:
    """The files of this package and of its dialects."""
    return [
        module.name
        for name in ("normswap.passes", "normswap.passes.dialects")
        for module in pkgutil.iter_modules(importlib.import_module(name).__path__, f"{name}.")
    ]


def _in_module(name: str) -> dict[str, type[Pass]]:
    """The swaps that a file defines."""
    module = importlib.import_module(name)
    own = (c for c in vars(module).values() if getattr(c, "__module__", "") == module.__name__)
    return {kind.to: kind for kind in own if _is_swap(kind)}


def _is_swap(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Pass) and bool(kind.to)


def _loaded(entry: EntryPoint) -> type[Pass]:
    owner = f" of {entry.dist.name}" if entry.dist is not None else ""
    try:
        kind = entry.load()
    except Exception as error:  # whatever another package raises
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise NormswapError(f"--to {entry.name}: {entry.value}{owner} fails: {reason}") from error
    if not _is_swap(kind) or inspect.isabstract(kind) or kind.to != entry.name:
        raise NormswapError(
            f"--to {entry.name}: {entry.value}{owner} is no Pass whose 'to' is '{entry.name}'"
        )
    return kind
