"""The cheapest thing that can stand in the place of each norm, for a requirement on the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from normswap.errors import NormswapError
from normswap.fit.ridge import RidgeFits
from normswap.io.data import Data
from normswap.model import Model
from normswap.norms.site import Site
from normswap.parity.requirement import Judge
from normswap.passes.affine import AffineStop
from normswap.passes.base import NormsFitted, PassResult
from normswap.passes.calibrated import Calibrated, Fitted, Plan, check_held_out
from normswap.passes.predicted import predicted_stops
from normswap.passes.rms_norm import RmsNorm

Choice = Mapping[Site, str]
"""What becomes of each site: GONE, PREDICTED or KEPT."""
GONE, PREDICTED, KEPT = "gone", "predicted", "kept"


@dataclass(kw_only=True)
class Auto(Calibrated):
    """For each norm the cheapest of: nothing (``Affine``), a predicted scale (``Predicted``), an
    exact RMSNorm, itself; such that the result meets ``ensure``.

    What a scale costs that is predicted, or a constant, shows on held-out samples: the mean square
    of its relative error. One limit for all norms decides what each becomes; the largest limit with
    which the result meets the requirement is found by bisection, everything fitted anew each time,
    and judged on every fifth sample, which no fit has seen. Then each norm that was kept is tried
    once more as a predicted scale. Those that stay become exact RMSNorms where the mean can leave
    their stream by its weights (``RmsNorm``). Raises NormswapError without a requirement. The
    options of all fitted passes are those of ``Calibrated``.

    Examples:
        >>> result = swap(model, Auto(ensure="cosine>=0.99"), data="images")
        >>> [fit.form for fit in result.fits], [site.name for site, _ in result.kept]
    """

    to: ClassVar[str] = "auto"
    summary: ClassVar[str] = "gone, predicted, RMSNorm or kept: the cheapest for --ensure."

    _choice: Choice = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens != "all":
            raise NormswapError("--to auto: fits all tokens together; leave --tokens out")

    def run(self, model: Model) -> PassResult:
        if self.ensure is None:
            raise NormswapError(
                "--to auto: chooses for a requirement; give --ensure, as in 'cosine>=0.99'"
            )
        return super().run(model)

    def plan(self, plan: Plan, sites: Sequence[Fitted]) -> None:
        check_held_out(plan, self.to)
        fits = RidgeFits()
        predicted = [f for f in sites if self._choice[f.site] == PREDICTED]
        gone = [f for f in sites if self._choice[f.site] == GONE]
        plan.stops += [AffineStop(plan, fitted, self.tokens, fits) for fitted in gone]
        plan.stops += predicted_stops(plan, predicted, None)

    def ensured(self, model: Model, todo: Sequence[Site], data: Data, judge: Judge) -> PassResult:
        swap = self._choosing(model, todo, data)
        everything = swap(dict.fromkeys(todo, PREDICTED))
        losses = everything.losses if isinstance(everything, NormsFitted) else {}
        search = _Search(swap, judge, losses, todo)
        choice = search.found(self.progress)
        result = search.result(choice)
        kept = [site for site in todo if choice[site] == KEPT]
        if not kept:
            return result
        centred = self._with_rms_norms(model, choice, data, judge)
        reached = judge.measure(everything.model)
        metric = judge.requirement.metric
        reason = (
            f"kept for {judge.requirement}: with all scales predicted {metric} is {reached:.4g}"
        )
        if centred is not None:
            result, reason = centred, f"{reason}; it is an exact RMSNorm now"
        stay = [(site, reason) for site in kept]
        return replace(result, kept=stay, notes=[*result.notes, _note(choice, result, judge)])

    def _choosing(
        self, model: Model, todo: Sequence[Site], data: Data
    ) -> Callable[[Choice], PassResult]:
        swap = self.swapping(model, model.sites, todo, data)

        def chosen(choice: Choice) -> PassResult:
            self._choice = choice
            sites = [site for site in todo if choice[site] != KEPT]
            return swap(sites) if sites else PassResult(model, False)

        return chosen

    def _with_rms_norms(
        self, model: Model, choice: Choice, data: Data, judge: Judge
    ) -> PassResult | None:
        """The same choice on the model whose LayerNorms are exact RMSNorms; None where they cannot
        be, or where the result does not meet the requirement."""
        exact = RmsNorm(sites=list(choice))(model)
        before, after = (
            [s for s in sites if s.kind != "batch_norm"]
            for sites in (model.sites, exact.model.sites)
        )
        if not exact.modified or len(before) != len(after):
            return None
        same = dict(zip(before, after, strict=True))
        names = {same[site]: site for site in choice}
        swap = self._choosing(exact.model, list(names), data)
        result = swap({new: choice[old] for new, old in names.items()})
        if not judge.meets(result.model):
            return None
        done = [names[site] for site in result.done]
        if not isinstance(result, NormsFitted):
            return replace(exact, done=[])
        fits = [replace(fit, site=names[fit.site]) for fit in result.fits]
        return replace(result, done=done, fits=fits, notes=[*exact.notes, *result.notes])


class _Search:
    """The choices that were tried, with whether their models meet the requirement."""

    def __init__(
        self,
        swap: Callable[[Choice], PassResult],
        judge: Judge,
        losses: Mapping[Site, tuple[float, float]],
        sites: Sequence[Site],
    ) -> None:
        self._swap, self._judge, self._sites = swap, judge, sites
        self._losses = {site: losses.get(site, (float("inf"),) * 2) for site in sites}
        self._met: dict[tuple[str, ...], bool] = {}

    def found(self, progress: Callable[[int, int, str], None] | None) -> Choice:
        limits = sorted({loss for pair in self._losses.values() for loss in pair})
        low, high = 0, len(limits)  # with limits[low - 1] it meets; with none every norm is kept
        steps = len(limits).bit_length()
        while low < high:
            middle = (low + high + 1) // 2
            if progress:
                progress(max(0, steps - (high - low).bit_length()), steps, "choosing")
            if self.meets(self._within(limits[middle - 1])):
                low = middle
            else:
                high = middle - 1
        choice = dict(self._within(limits[low - 1] if low else -1.0))
        kept = [site for site in self._sites if choice[site] == KEPT]
        for site in sorted(kept, key=lambda site: self._losses[site][1]):
            tried = choice | {site: PREDICTED}
            if self.meets(tried):
                choice = tried
        return choice

    def _within(self, limit: float) -> Choice:
        """The cheapest for each site whose loss is within ``limit``."""

        def cheapest(constant: float, predicted: float) -> str:
            return GONE if constant <= limit else PREDICTED if predicted <= limit else KEPT

        return {site: cheapest(*losses) for site, losses in self._losses.items()}

    def meets(self, choice: Choice) -> bool:
        key = tuple(choice[site] for site in self._sites)
        if key not in self._met:
            self._met[key] = self._judge.meets(self.result(choice).model)
        return self._met[key]

    def result(self, choice: Choice) -> PassResult:
        return self._swap(choice)


def _note(choice: Choice, result: PassResult, judge: Judge) -> str:
    counts = {form: sum(c == form for c in choice.values()) for form in (GONE, PREDICTED, KEPT)}
    words = ", ".join(f"{count} {form}" for form, count in counts.items())
    return (
        f"{words} for {judge.requirement}, which is now {judge.measure(result.model):.4g} on "
        f"{judge.samples} samples that no fit has seen"
    )
