"""Norms that are spelled out become one operator each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from normswap.errors import NormswapError
from normswap.graph.graph import Graph
from normswap.graph.operators import operator
from normswap.model import Model
from normswap.norms.site import Site
from normswap.passes.base import Chooser, ChosenForms, NormForms, NormsWritten, Pass
from normswap.passes.norm_operator import OperatorForms
from normswap.passes.select import select_sites


@dataclass(kw_only=True)
class Fused(Pass):
    """y = (x - E[x]) / sqrt(Var[x] + eps) * gamma + beta, spelled out, becomes LayerNormalization
    with the constants that the proof recovered; an RMSNorm or an evaluation-mode BatchNorm becomes
    its own operator.

    Exact. A norm over other axes than the last ones gets transposes around it, one whose constants
    half precision cannot hold casts. LayerNormalization needs opset 17, RMSNormalization 23: an
    older ONNX file is raised to it. What else reads an intermediate of the spelling keeps it.
    Skips norms that are one operator already, instance and group norms, and those whose operator
    needs an opset in which a runtime that runs the file would not load it.

    Attributes:
        chooser: decides on the form of each norm; None for the operator of its kind. Those of
            ``normswap.lowering.chooser_for`` measure the forms in the runtime that the model is
            made for. Whatever it raises is raised.
        sites: which norms; see ``select_sites``. All by default.

    Examples:
        >>> result = Fused(sites="tower=image")(model)
        >>> result.model, len(result.done)
    """

    to: ClassVar[str] = "fused"
    summary: ClassVar[str] = "exact, a norm becomes the operator that is best for --target."
    exact: ClassVar[bool] = True
    lowering: ClassVar[tuple[str, ...]] = ("target", "kernels", "tune")

    chooser: Chooser | None = field(default=None, repr=False)

    def run(self, model: Model) -> NormsWritten:
        chosen = select_sites(model.sites, self.sites)
        forms = OperatorForms()
        plan = forms.defaults(chosen)
        if self.chooser is not None:
            plan = self.chooser(model.graph, chosen, forms)
        refused: dict[str, str] = {}
        while True:
            result = _written(model, chosen, forms, plan, refused)
            why = result.model.graph.load_refusal() if result.modified else ""
            if not why or model.graph.load_refusal():
                return result
            newest = max(
                {plan.forms[site] for site in result.done}, key=lambda f: operator(f).opset
            )
            refused[newest] = f"with {newest} the new model could not be loaded: {why}"


def _written(
    model: Model,
    chosen: Sequence[Site],
    forms: NormForms,
    plan: ChosenForms,
    refused: Mapping[str, str],
) -> NormsWritten:
    """The model with the norms of ``plan`` in their forms, but for the ``refused`` ones."""
    values = {site: site.output for site in chosen}
    result = model.copy() if plan.forms else model
    wanted = [form for form in plan.forms.values() if form not in refused]
    refused = {**refused, **_refused(result.graph, wanted)}
    skipped = plan.skipped + [(s, refused[f]) for s, f in plan.forms.items() if f in refused]
    todo = [site for site, form in plan.forms.items() if form not in refused]
    if not todo:
        return NormsWritten(model, False, [], skipped, plan.notes, values=values)
    new = {}
    for site in reversed(todo):  # a norm may read the output of the one before it
        new[site] = forms.write(result.graph, site, plan.forms[site])[0]
    result.graph.prune()
    values |= {site: value.name for site, value in new.items()}
    return NormsWritten(result, True, todo, skipped, plan.notes, values=values)


def _refused(graph: Graph, forms: Iterable[str]) -> dict[str, str]:
    """Raises the opset of ``graph`` for ``forms``; the reasons for those that it cannot be raised
    for."""
    reasons = {}
    for form in dict.fromkeys(forms):
        try:
            graph.require(form)
        except NormswapError as error:
            reasons[form] = str(error)
    return reasons
