"""The public functions that rewrite a model: each takes options and returns plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from normswap.errors import NormswapError
from normswap.lowering import Lowering, chooser_for, lower, target_chooser
from normswap.model import Model, Progress
from normswap.norms.site import Site
from normswap.parity.certified import certified_pass
from normswap.passes.base import Pass, PassResult
from normswap.passes.registry import pass_called, passes
from normswap.passes.select import Selection
from normswap.precision.convert import Conversion, converted


def locate(model: Model) -> list[Site]:
    """The norms of a model in the order of execution.

    They are ``model.sites``: located on first use and kept. Any of them may be given as ``sites``
    to ``swap``, ``fold`` and ``fold_affine``. What looks like a norm and is none is in
    ``model.location.rejected``, with the reason.

    Args:
        model: of ``load``.

    Returns:
        One ``Site`` for each norm; none is an empty list.

    Examples:
        >>> [site.name for site in locate(model) if site.role == "final"]
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
    certify: bool = False,
    progress: Progress | None = None,
) -> PassResult:
    """The model with its norms swapped for others.

    Args:
        model: of ``load``; it is not changed.
        how: a pass with its options: ``Fused()``, ``RmsNorm()`` (exact), ``BatchNorm(...)``,
            ``Affine(...)`` (fitted to data), or one of another package.
        to: the word of a pass without options, in place of ``how``: 'fused', 'rmsnorm',
            'batchnorm', 'affine', or what another package offers.
        sites: which norms: a pattern such as ``"role=pre_mlp tower=image, role=final"`` (see
            ``select_sites``), or a list of sites of ``locate``. By default all; for fitted passes,
            in a model with an image tower, those of that tower.
        data: for fitted passes, and required there: whatever ``load_data`` takes, such as a folder
            of images, or an array [N, C, H, W] of prepared ones. No labels are needed.
        samples: use that many of ``data``, drawn at random (always the same).
        lowering: what the model is made for, for passes that write norms as operators.
        certify: of an exact pass: also prove that the new model is the same function in real
            arithmetic (``certificate`` of the result), which takes a second run of the pass and of
            both models.
        progress: ``progress(done, total, what)`` is called before each step, and once at the end.

    Returns:
        The new ``model``, the sites that are ``done``, those ``skipped`` (each with the reason) or
        ``kept`` for a requirement, and ``notes``. Weights keep their dtype: they are computed in
        float64 and rounded once. Fitted norms are still there, for training: ``fold`` takes them
        out.

    Raises:
        NormswapError: a word that is no pass; both or neither of ``how`` and ``to``; a pattern that
            matches no site; ``certify`` with a fitted pass; data that is missing, unfit, or given
            to an exact pass; a ``lowering`` that the pass does not depend on.

    Examples:
        >>> result = swap(model, to="fused")
        >>> len(result.done), result.skipped
        >>> result = swap(model, Affine(refit_writers=True), data="images", sites="tower=image")
        >>> save(fold(result.model).model, "norm-free.onnx")
    """
    if how is None:
        kind = pass_called(to or "")
        if kind is None:
            raise NormswapError(f"swap: '{to}' is none of {', '.join(passes())}")
        how = kind()
    elif to is not None:
        raise NormswapError("swap: give a pass or its word (to=), not both")
    if certify and not how.exact:
        raise NormswapError(f"swap: '{how.to}' is another function, which nothing can certify")
    given: dict[str, Any] = {"sites": sites, "progress": progress}
    if (how.needs_data or how.takes_data) and data is not None:
        from normswap.io.data import Data, load_data

        given["data"] = (
            data if isinstance(data, Data) else load_data(data, model, samples, progress=progress)
        )
    elif data is not None:
        raise NormswapError(f"swap: '{how.to}' takes no data")
    made_for = lowering or Lowering()
    if unknown := [name for name in made_for.asked if name not in how.lowering]:
        raise NormswapError(f"swap: '{how.to}' does not depend on {unknown[0]}; leave it out")
    if how.needs_target:
        given["chooser"] = target_chooser(made_for.target, made_for.tune, progress)
    elif "target" in how.lowering:
        given["chooser"] = chooser_for(made_for.target, made_for.tune, progress)
    how = dataclasses.replace(how, **{name: v for name, v in given.items() if v is not None})
    with model.blamed():
        result = lower(how(model), made_for, progress)
        result = _certified(model, result, how) if certify else result
    return result.recorded(f"swap to {how.to}")


def _certified(model: Model, result: PassResult, how: Pass) -> PassResult:
    """The result with a certificate, if the pass has modified anything."""
    if not result.modified:
        return result
    found = certified_pass(model, result.model, lambda copy: how(copy).model)
    return dataclasses.replace(result, certificate=found)


def fold(model: Model, *, sites: Selection | None = None, certify: bool = False) -> PassResult:
    """The model with its evaluation-mode BatchNorms and other affine maps folded into the
    neighbouring weights; exact.

    Args:
        model: of ``load``, or ``swap(...).model``; it is not changed.
        sites: which BatchNorms and maps, as for ``swap``; all by default.
        certify: also prove that it is the same function in real arithmetic, as for ``swap``.

    Returns:
        What ``Fold`` did. ``model`` is the input itself where nothing could be folded; ``skipped``
        has the reasons, such as training mode, or a reader that is not linear.

    Raises:
        NormswapError: a pattern that matches no site.

    Examples:
        >>> folded = fold(swap(model, to="affine", data="images").model)
        >>> folded.model.sites  # none is left
        ()
    """
    from normswap.passes.fold import Fold

    how = Fold(sites=sites)
    with model.blamed():
        result = how(model)
        result = _certified(model, result, how) if certify else result
    return result.recorded("fold")


def fold_affine(
    model: Model, *, sites: Selection | None = None, certify: bool = False
) -> PassResult:
    """The model with gamma and beta of its LayerNorms and RMSNorms folded into what reads them;
    exact.

    Args:
        model: of ``load``; it is not changed.
        sites: which norms, as for ``swap``; all by default.
        certify: also prove that it is the same function in real arithmetic, as for ``swap``.

    Returns:
        What ``FoldAffine`` did. A norm is ``skipped``, whole, where anything but linear layers and
        convolutions reads it.

    Raises:
        NormswapError: a pattern that matches no site.

    Examples:
        >>> result = fold_affine(model, sites="role=pre_mlp")
    """
    from normswap.passes.fold_affine import FoldAffine

    how = FoldAffine(sites=sites)
    with model.blamed():
        result = how(model)
        result = _certified(model, result, how) if certify else result
    return result.recorded("fold of gamma and beta")


def convert(
    model: Model,
    dtype: str,
    *,
    keep_io: bool = True,
    keep: Sequence[str] = (),
    data: Any = None,
    samples: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """The model in half precision: weights, constants and operators; the last step before ``save``.

    Norms that are one operator keep their epsilon and compute their statistics in float32, as the
    standard has it. A norm that is spelled out is converted as it is written. Computed in float32
    still, between casts, is what the format cannot hold: whole norms whose epsilon it makes 0,
    what reads a constant beyond it, operators that have no such form, and what overflows on
    ``data``.

    Args:
        model: of ``load`` or of a pass; it is not changed.
        dtype: 'float16' or 'bfloat16'.
        keep_io: whether inputs and outputs stay as they are, with casts behind and before them.
        keep: what to compute in float32 too: globs on the names of norms, modules and values.
        data: whatever ``load_data`` takes, to find what overflows.
        samples: use that many of ``data``, drawn at random (always the same).
        progress: ``progress(done, total, what)`` is called while data is read.

    Returns:
        The new ``model``, the ``islands`` in float32 with the reasons, and ``notes``: constants
        that stand for infinity and became the largest number, and weights that became 0.

    Raises:
        NormswapError: another dtype, a model with weights in half precision, a pattern that matches
            nothing, and a model that does not run in half precision.

    Examples:
        >>> result = convert(swap(model, to="fused").model, "float16")
        >>> save(result.model, "vit-fp16.onnx")
        >>> validate(model, result.model, data="images", simulate="float16").passed
    """
    with model.blamed():
        if data is None:
            return converted(model, dtype, keep_io, keep, ())
        from normswap.io.data import Data, load_data
        from normswap.parity.batches import batches_of

        if not isinstance(data, Data):
            data = load_data(data, model, samples, progress=progress)
        batches, _ = batches_of(model, data)
        return converted(model, dtype, keep_io, keep, batches)
