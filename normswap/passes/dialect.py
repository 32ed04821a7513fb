"""Each norm in the dialect that the target has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from normswap.errors import NormswapError
from normswap.graph.graph import Graph, Value
from normswap.model import Model
from normswap.norms.site import Site
from normswap.passes.base import Chooser, ChosenForms, Pass, PassResult, Refusal
from normswap.passes.dialects.elementary import Elementary
from normswap.passes.dialects.group import Group
from normswap.passes.dialects.instance import Instance
from normswap.passes.dialects.lp import Lp
from normswap.passes.dialects.product import Product
from normswap.passes.dialects.writing import Dialect
from normswap.passes.norm_operator import OperatorForms
from normswap.passes.select import select_sites

_FUSED = "fused"
# The nearest to the standard operator first: what that is defined as, one other operator, and what
# has no reduction. 'scaled' needs all that 'elementary' does, and is asked for by its name.
_DIALECTS: dict[str, type[Dialect]] = {
    kind.to: kind for kind in (Elementary, Instance, Group, Lp, Product)
}


class DialectForms:
    """The exact dialects as a ``NormForms`` for a chooser, called by their words behind ``--to``;
    'fused' is the operator of the norm's kind."""

    def __init__(self) -> None:
        self._operators = OperatorForms()

    def defaults(self, sites: Sequence[Site]) -> ChosenForms:
        """Each norm that is spelled out as the operator of its kind."""
        chosen = self._operators.defaults(sites)
        return ChosenForms(dict.fromkeys(chosen.forms, _FUSED), chosen.skipped)

    def candidates(self, graph: Graph, site: Site) -> list[str]:
        """In the order of preference."""
        fused = [_FUSED] if self._operators.defaults([site]).forms else []
        return fused + [word for word, kind in _DIALECTS.items() if not kind().why_not(site)]

    def region(self, graph: Graph, site: Site) -> tuple[list[Value], list[Value]]:
        return [graph.value(site.input)], [graph.value(site.output)]

    def write(self, graph: Graph, site: Site, form: str) -> list[Value]:
        if form == _FUSED:
            (operator,) = self._operators.defaults([site]).forms.values()
            return self._operators.write(graph, site, operator)[:1]
        dialect = _DIALECTS[form]()
        if dialect.requires:
            graph.require(dialect.requires)
        try:
            return [dialect.write(graph, site)]
        except Refusal as refusal:
            raise NormswapError(str(refusal)) from refusal


@dataclass(kw_only=True)
class ForTarget(Pass):
    """Each norm that the target does not run as it stands becomes the first of ``fused``,
    ``elementary``, ``instance``, ``group``, ``lp`` and ``product`` that it has.

    Exact. What a target has is in its capability file; an operator of which that does not speak is
    not taken. Skips norms that the target runs as they stand, those that it has no dialect for, and
    those of other kinds, each with the reason.

    Attributes:
        chooser: decides; that of ``normswap.lowering.target_chooser``. Whatever it raises is
            raised.

    Raises:
        NormswapError: no chooser, since there is no target.

    Examples:
        >>> swap(model, ForTarget(), lowering=Lowering("rknn")).skipped
    """

    to: ClassVar[str] = "dialect"
    summary: ClassVar[str] = "exact, the first of fused and the dialects that --target has."
    exact: ClassVar[bool] = True
    needs_target: ClassVar[bool] = True
    lowering: ClassVar[tuple[str, ...]] = ("target", "tune")

    chooser: Chooser | None = field(default=None, repr=False)

    def run(self, model: Model) -> PassResult:
        if self.chooser is None:
            raise NormswapError("--to dialect: takes what a target has; name it with --target")
        chosen = select_sites(model.sites, self.sites)
        forms = DialectForms()
        plan = self.chooser(model.graph, chosen, forms)
        reasons = dict(plan.skipped)
        result = model.copy() if plan.forms else model
        for site in reversed(chosen):  # a norm may read the output of the one before it
            if site in plan.forms:
                try:
                    forms.write(result.graph, site, plan.forms[site])
                except NormswapError as error:
                    reasons[site] = str(error)
        skipped = [(site, reasons[site]) for site in chosen if site in reasons]
        done = [site for site in chosen if site not in reasons]
        if not done:
            return PassResult(model, False, [], skipped, plan.notes)
        result.graph.prune()
        return PassResult(result, True, done, skipped, plan.notes)
