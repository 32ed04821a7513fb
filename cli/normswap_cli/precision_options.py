"""The options of the commands that can write a model in half precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from normswap_cli.options import FileOrName

if TYPE_CHECKING:
    from normswap.model import Model
    from normswap.precision.convert import Conversion


@dataclass(frozen=True)
class Precision:
    """In which format a command writes its model: ``dtype`` None is as it is."""

    dtype: str | None
    half_io: bool
    keep: tuple[str, ...]
    overflow_data: str | None

    def conversion(self, model: Model, output: Path) -> Conversion | None:
        """The model in that format; None where none was asked for. A torch model that is written
        as ONNX is converted as ONNX, which knows what has no form in the format."""
        if self.dtype is None:
            return None
        from normswap import convert
        from normswap.io.save import as_onnx

        with model.blamed():
            made = as_onnx(model) if output.suffix == ".onnx" else model
        io = not self.half_io
        return convert(made, self.dtype, keep_io=io, keep=self.keep, data=self.overflow_data)


_OPTIONS = (
    click.option(
        "--dtype",
        type=click.Choice(["float16", "bfloat16"]),
        help="Write the model in this format: weights, constants and operators. What the format "
        "cannot hold stays in float32 between casts, and is listed.",
    ),
    click.option("--half-io", is_flag=True, help="--dtype: inputs and outputs in the format too."),
    click.option(
        "--keep",
        multiple=True,
        metavar="PATTERN",
        help="--dtype: what to leave in float32 besides: a glob on the names of norms, modules and "
        "values. It may be given several times.",
    ),
    click.option(
        "--overflow-data",
        type=FileOrName(),
        metavar="DATA",
        help="--dtype: inputs on which to find what is beyond the format, to leave it in float32.",
    ),
)


def precision_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options above, which the command gets as ``precision``."""

    @functools.wraps(command)
    def collected(**given: Any) -> Any:
        own = {name: given.pop(name) for name in Precision.__dataclass_fields__}
        precision = Precision(**own)
        if precision.dtype is None and any(own.values()):
            raise click.UsageError("--half-io, --keep and --overflow-data belong to --dtype.")
        return command(precision=precision, **given)

    for option in reversed(_OPTIONS):
        collected = option(collected)
    return collected
