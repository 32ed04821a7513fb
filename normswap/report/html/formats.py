"""Figures and terms as the terminal writes them, for pages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from normswap.parity.report import ModelSummary

TO = "\N{RIGHTWARDS ARROW}"

_KINDS = {
    "layer_norm": "LayerNorm",
    "rms_norm": "RMSNorm",
    "batch_norm": "BatchNorm",
    "instance_norm": "InstanceNorm",
    "group_norm": "GroupNorm",
}
_ROLES = {
    "embedding": "on the embedding",
    "pre_attention": "before attention",
    "pre_mlp": "before the MLP",
    "post_attention": "after attention",
    "post_mlp": "after the MLP",
    "final": "final",
    "query_key": "on query or key",
    "downsample": "downsampling",
}
_TOWERS = {"image": "Image tower", "text": "Text tower", "both": "Both towers", "": "Model"}


def number(value: float | None, spec: str = ".2e") -> str:
    """'-' for None; an error may be infinite."""
    if value is None:
        return "-"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    return format(value, spec)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def decibels(sqnr: float | None, max_abs_error: float | None) -> str:
    """An SQNR; 'equal' where there is no error."""
    return "equal" if max_abs_error == 0 else number(sqnr, ".1f")


def times(value: float | None) -> str:
    """A multiple: 0.42, 31,200 or 1.20e+07."""
    if value is None or not math.isfinite(value) or 0 < value < 0.01 or value >= 1e6:
        return number(value)
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def change(before: float | None, after: float | None) -> str:
    """From one share to another; '-' where the first is not known."""
    return "-" if before is None else f"{percent(before)} {TO} {percent(after)}"


def file_size(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.1f}\N{NO-BREAK SPACE}MB"


def milliseconds(value: float | None) -> str:
    return number(value, ".2f" if value is None or value < 100 else ".1f")


def counted(count: int, noun: str) -> str:
    """'1 norm', '2 norms'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def kind_name(kind: str | None) -> str:
    return "none" if kind is None else _KINDS.get(kind, kind)


def role_name(role: str) -> str:
    return _ROLES.get(role, role.replace("_", " "))


def tower_name(tower: str) -> str:
    return _TOWERS.get(tower, tower)


def kinds_present(model: ModelSummary) -> str:
    """'24 LayerNorm, 1 BatchNorm', or 'no norms'."""
    counts = Counter(kind_name(norm.kind) for norm in model.norms)
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "no norms"


def listed(parts: Iterable[str]) -> str:
    """'a, b and c'."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def shortened(text: str, most: int) -> str:
    """At most ``most`` characters, the middle left out."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{text[-tail:]}"
