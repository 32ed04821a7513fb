"""The public functions that rewrite a model: each takes options and returns plain values."""

from __future__ import annotations

import dataclasses
from typing import Any

from normswap.errors import NormswapError
from normswap.lowering import Lowering, chooser_for, lower
from normswap.model import Model, Progress
from normswap.norms.site import Site
from normswap.passes.base import Pass, PassResult, chooses_forms
from normswap.passes.registry import pass_called, passes
from normswap.passes.select import Selection


def locate(model: Model) -> list[Site]:
    """The norms of a model in the order of execution.

    They are ``model.sites``: located on first use and kept. Any of them may be given as ``sites``
    to the functions below.
    """
    return list(model.sites)


def swap(
    model: Model,
    how: Pass | None = None,
    *,
    to: str | None = None,
    sites: Selection | None = None,
    data: Any = None,
    samples: int | None = None,
    lowering: Lowering | None = None,
    progress: Progress | None = None,
) -> PassResult:
    """The model with its norms swapped for others.

    ``how``: a pass with its options, such as ``Affine(refit_writers=True)``. ``to``: in place of
    it the word of a pass without any: 'fused' or 'rmsnorm' (exact), 'batchnorm' or 'affine'
    (from calibration data), or what another package offers. ``sites``: a pattern of globs on names
    and ``role=``, ``tower=`` terms, or a list of sites; all by default. ``data``: what
    ``load_data`` takes; ``samples``: use that many of it. ``lowering``: what the model is made for,
    for the passes that write norms as operators. ``progress(done, total, what)`` is called by
    passes that take long.
    Raises NormswapError for an unknown word, and for data that is missing or unfit.

    Example: ``swap(model, Affine(refit_writers=True), data="images", sites="tower=image")``
    """
    if how is None:
        kind = pass_called(to or "")
        if kind is None:
            raise NormswapError(f"swap: '{to}' is none of {', '.join(passes())}")
        how = kind()
    elif to is not None:
        raise NormswapError("swap: give a pass or its word (to=), not both")
    given: dict[str, Any] = {"sites": sites, "progress": progress}
    if how.needs_data and data is not None:
        from normswap.io.data import Data, load_data

        given["data"] = (
            data if isinstance(data, Data) else load_data(data, model, samples, progress=progress)
        )
    elif data is not None:
        raise NormswapError(f"swap: '{how.to}' takes no data")
    if lowering is not None and not chooses_forms(type(how)):
        raise NormswapError(f"swap: '{how.to}' is the same for every target; leave lowering out")
    made_for = lowering or Lowering()
    if chooses_forms(type(how)):
        given["chooser"] = chooser_for(made_for.target, made_for.tune, progress)
    how = dataclasses.replace(how, **{name: v for name, v in given.items() if v is not None})
    with model.blamed():
        result = lower(how(model), made_for.target, made_for.tune, progress)
    return result.recorded(f"swap to {how.to}")


def fold(model: Model, *, sites: Selection | None = None) -> PassResult:
    """The model with its evaluation-mode BatchNorms and other affine maps folded into the
    neighbouring weights.

    Example: ``fold(swap(model, to="affine", data=images).model)``
    """
    from normswap.passes.fold import Fold

    with model.blamed():
        return Fold(sites=sites)(model).recorded("fold")


def fold_affine(model: Model, *, sites: Selection | None = None) -> PassResult:
    """The model with gamma and beta of its LayerNorms and RMSNorms folded into what reads them;
    exact.

    Example: ``fold_affine(model, sites="role=pre_mlp")``
    """
    from normswap.passes.fold_affine import FoldAffine

    with model.blamed():
        return FoldAffine(sites=sites)(model).recorded("fold of gamma and beta")
