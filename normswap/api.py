"""The public functions that rewrite a model: each takes options and returns plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from normswap.errors import NormswapError
from normswap.lowering import chooser_for, lower
from normswap.model import Model
from normswap.norms.site import Site
from normswap.passes.base import PassResult, swap_called, swaps
from normswap.passes.select import Selection


def locate(model: Model) -> list[Site]:
    """The norms of a model in the order of execution."""
    return list(model.sites)


def swap(
    model: Model,
    *,
    to: str,
    sites: Selection | None = None,
    data: Any = None,
    samples: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> PassResult:
    """The model with the norms at ``sites`` swapped for others.

    ``to``: 'fused' or 'rmsnorm' (exact), or 'batchnorm' or 'affine' (from calibration data).
    ``sites``: globs on names and ``role=``, ``tower=`` terms. ``data``: what
    ``normswap.io.data.load_data`` takes; ``samples``: use that many of it.
    ``progress(done, total, what)`` is called by passes that take
    long. Further options are the fields of the pass (see ``normswap.passes``), and for 'fused' the
    ``target`` and ``tune`` of ``normswap.lowering.chooser_for``.
    Raises NormswapError for an unknown target or option, and for data that is missing or unfit.
    """
    kind = swap_called(to)
    if kind is None:
        raise NormswapError(f"swap: '{to}' is none of {', '.join(swaps())}")
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    chooses = "chooser" in fields
    lowered = {n: options.pop(n) for n in ("target", "tune") if n in options and chooses}
    for name in options:
        if name not in fields:
            raise NormswapError(f"swap: '{to}' has no option {name}")
    if kind.needs_data:
        if data is None:
            raise NormswapError(f"swap: '{to}' needs calibration data")
        from normswap.io.data import Data, load_data

        given = isinstance(data, Data)
        options["data"] = data if given else load_data(data, model, samples, progress=progress)
    elif data is not None:
        raise NormswapError(f"swap: '{to}' takes no data")
    if "progress" in fields:
        options["progress"] = progress
    if chooses:
        options["chooser"] = chooser_for(progress=progress, **lowered)
    result: PassResult = kind(sites=sites, **options)(model)  # type: ignore[call-arg]
    return lower(result, progress=progress, **lowered).recorded(f"swap to {to}")


def fold(model: Model, *, sites: Selection | None = None) -> PassResult:
    """The model with its evaluation-mode BatchNorms and other affine maps folded into the
    neighbouring weights."""
    from normswap.passes.fold import Fold

    return Fold(sites=sites)(model).recorded("fold")


def fold_affine(model: Model, *, sites: Selection | None = None) -> PassResult:
    """The model with gamma and beta of its LayerNorms and RMSNorms folded into what reads them;
    exact."""
    from normswap.passes.fold_affine import FoldAffine

    return FoldAffine(sites=sites)(model).recorded("fold of gamma and beta")
