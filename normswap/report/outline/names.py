"""Module paths of things that belong together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def common_path(paths: Iterable[str]) -> str:
    """The module that holds all ``paths``; '' if there is none. Empty paths do not count."""
    split = [path.split(".") for path in paths if path]
    if not split:
        return ""
    shared = split[0]
    for parts in split[1:]:
        length = next(
            (i for i, (a, b) in enumerate(zip(shared, parts, strict=False)) if a != b),
            min(len(shared), len(parts)),
        )
        shared = shared[:length]
    return ".".join(shared)


def pattern(paths: Sequence[str]) -> str:
    """``blocks.*.norm1`` for ``blocks.0.norm1`` to ``blocks.11.norm1``; the glob for --sites.

    Paths of different lengths have no pattern: the first one, with an ellipsis.
    """
    if len(set(paths)) <= 1:
        return paths[0] if paths else ""
    split = [path.split(".") for path in paths]
    if len({len(parts) for parts in split}) > 1:
        return f"{paths[0]} ..." if paths[0] else ""
    return ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in zip(*split, strict=True))
