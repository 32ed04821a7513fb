"""What ``swap --to`` takes, and which options belong to which of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from normswap.passes import Pass


class To(click.ParamType):  # type: ignore[type-arg]
    """One of the passes that swap. A ``click.Choice`` would import all for ``normswap --help``."""

    name = "swap"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> type[Pass]:
        from normswap.passes import swap_called

        kind = swap_called(value)
        if kind is None:
            self.fail(f"'{value}' is none of {', '.join(_swaps())}.", param, ctx)
        return kind

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(_swaps())}]"


def check_options(swap: type[Pass], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, by the names of the pass's fields.

    Raises UsageError for one that belongs to other swaps, and for calibration data that is
    missing.
    """
    chosen = {name: value for name, value in given.items() if value not in (None, False)}
    for name in chosen:
        if not _takes(swap, name):
            takers = [word for word, kind in _swaps().items() if _takes(kind, name)]
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(
                f"{option} belongs to --to {' or '.join(takers)}, not to {swap.to}."
            )
    if swap.needs_data and "data" not in chosen:
        raise click.UsageError(f"--to {swap.to} needs calibration data: give --data.")
    return chosen


def _takes(kind: type[Pass], option: str) -> bool:
    if option == "samples":
        return kind.needs_data
    if option == "fold":  # only what is fitted leaves something to fold
        return not kind.exact
    if option == "fold_affine":  # and only an exact swap leaves a norm with gamma and beta
        return kind.exact
    return option in {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


def _swaps() -> dict[str, type[Pass]]:
    from normswap.passes import swaps

    return swaps()
