"""Norms become the operators that are best for where the model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from normswap.errors import NormswapError
from normswap.lowering.runtimes import TARGETS, runtime_of
from normswap.model import Model
from normswap.norms.site import Site
from normswap.options import option
from normswap.passes.base import Pass, PassResult
from normswap.passes.kernel_choice import use_kernels
from normswap.passes.norm_forms import KINDS, OPERATOR, ChosenForms, refusal, write
from normswap.passes.select import other_kind, select_sites


@dataclass(kw_only=True)
class Fused(Pass):
    """y = (x - E[x]) / sqrt(Var[x] + eps) * gamma + beta, spelled out, becomes LayerNormalization
    (ONNX) or ``aten.layer_norm`` (FX) with the constants that the proof recovered; an RMSNorm or
    an evaluation-mode BatchNorm becomes its own operator.

    Exact. A norm over other axes than the last ones gets transposes around it, one whose constants
    half precision cannot hold casts. ONNX's LayerNormalization needs opset 17, RMSNormalization
    23: an older file is raised to it. What else reads an intermediate of the spelling keeps it.
    Skips norms that are one operator already, and instance and group norms.

    ``target``: what the model is made for, one of ``TARGETS``; None is the same as 'generic' for
    an ONNX graph, and torch itself for an FX graph. For torch, norms also run as the kernels of
    ``lowering/kernels`` in inference (``Model.to_inference``), in place, wherever the graph proves
    that nobody reads the overwritten buffers any more. ``tune`` measures the forms of every norm
    on this machine, one operator for the norm and its residual sum among them, and takes another
    than the default only where it is faster and as accurate.
    Raises NormswapError for an unknown target, and where ``tune`` cannot measure on it.
    """

    to: ClassVar[str] = "fused"
    summary: ClassVar[str] = "exact, a norm becomes the operator that is best for --target."
    exact: ClassVar[bool] = True

    target: str | None = option(
        None,
        "what the model is made for. By default ONNX's standard operators, and in torch kernels "
        "that work in place.",
        choices=TARGETS,
    )
    tune: bool = option(
        False, "measure the forms of every norm on this machine, and take what wins."
    )

    def __call__(self, model: Model) -> PassResult:
        chosen = select_sites(model.sites, self.sites)
        if model.kind == "fx" and self.target is None:
            return self._for_torch(model, chosen)
        if model.kind == "onnx" and self.tune:
            from normswap.lowering.onnx_norms import tuned  # needs torch

            runtime = runtime_of(self.target or "generic")
            return _written(model, tuned(model, chosen, runtime, self.progress))
        if self.tune:
            raise NormswapError("--tune: export the model to ONNX to measure it for a --target")
        return _written(model, _defaults(chosen))

    def _for_torch(self, model: Model, chosen: Sequence[Site]) -> PassResult:
        plan = _defaults(chosen)
        written = _written(model, plan)
        result = written.model.copy() if not written.modified else written.model
        norms = {site: written.values.get(site, site.output) for site in chosen}
        kernels, notes = use_kernels(result.graph, norms, self.tune, self.progress)
        done = [site for site in chosen if site in kernels or site in written.done]
        skipped = [(s, _kernel_reason(s, r)) for s, r in written.skipped if s not in kernels]
        if not done:
            return PassResult(model, False, [], skipped, notes)
        return PassResult(result, True, done, skipped, [*written.notes, *notes])


@dataclass(frozen=True)
class _Written(PassResult):
    """``values``: the name of each written norm's new value."""

    values: Mapping[Site, str] = field(default_factory=dict)


def _defaults(chosen: Sequence[Site]) -> ChosenForms:
    todo = [s for s in chosen if s.kind in KINDS and s.spelling == "decomposed"]
    skipped = [(s, _reason(s)) for s in chosen if s not in todo]
    return ChosenForms(dict.fromkeys(todo, OPERATOR), skipped)


def _reason(site: Site) -> str:
    if site.spelling == "op":
        return "it is one operator already"
    return other_kind(site)


def _kernel_reason(site: Site, reason: str) -> str:
    if site.spelling != "op" or site.kind not in ("layer_norm", "rms_norm"):
        return reason
    return f"{reason}, and what it would overwrite in place is still needed"


def _written(model: Model, plan: ChosenForms) -> _Written:
    """The model with the norms in the forms of ``plan``, where the graph can hold them."""
    if not plan.forms:
        return _Written(model, False, [], plan.skipped, plan.notes)
    result = model.copy()
    sorts = {(site.kind, form): site for site, form in plan.forms.items()}
    refused = {sort: refusal(result.graph, site, sort[1]) for sort, site in sorts.items()}
    skipped, todo = list(plan.skipped), []
    for site, form in plan.forms.items():
        reason = refused[site.kind, form]
        if reason is None:
            todo.append(site)
        else:
            skipped.append((site, reason))
    if not todo:
        return _Written(model, False, [], skipped, plan.notes)
    new = {}
    for site in reversed(todo):  # a norm may read the output of the one before it
        new[site] = write(result.graph, site, plan.forms[site])[0]
    result.graph.prune()
    values = {site: value.name for site, value in new.items()}
    return _Written(result, True, todo, skipped, plan.notes, values=values)
