"""The fewest norms that have to stay for an approximate swap to meet a requirement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from normswap.model import Model, Progress
from normswap.norms.site import Site
from normswap.parity.requirement import Judge
from normswap.passes.base import PassResult

Swapping = Callable[[Sequence[Site]], PassResult]


def swap_ensuring(
    model: Model, sites: Sequence[Site], swap: Swapping, judge: Judge, progress: Progress | None
) -> PassResult:
    """``swap`` of all ``sites`` but those that must keep their norm for ``judge`` to agree.

    Each site's cost is the error of a model in which it alone is swapped. The costliest ones keep
    their norm, as few of them as it takes (found by bisection, everything fitted anew each time);
    then each of these is tried once more until none can go, since another set may do with fewer.
    So no site that keeps its norm could be swapped as well.
    """
    everything = swap(sites)
    if judge.meets(everything.model):
        return everything
    costs = []
    for number, site in enumerate(sites):
        if progress:
            progress(number, len(sites), "weighing sites")
        costs.append(judge.error(swap([site]).model))
    if progress:
        progress(len(sites), len(sites), "weighing sites")
    order = sorted(range(len(sites)), key=lambda i: -costs[i])
    search = _Search(model, sites, swap, judge)
    low, high = 1, len(order)
    while low < high:
        middle = (low + high) // 2
        if search.meets(frozenset(order[:middle])):
            high = middle
        else:
            low = middle + 1
    kept, before = frozenset(order[:low]), None
    while kept != before:  # what one norm's leaving allows another may have to wait for
        before = kept
        for index in reversed(order[:low]):
            if index in kept and search.meets(kept - {index}):
                kept = kept - {index}
    result = search.result(kept)
    reached = judge.measure(everything.model)
    metric = judge.requirement.metric
    reason = f"kept for {judge.requirement}: with all sites swapped {metric} is {reached:.4g}"
    note = (
        f"{len(kept)} of {len(sites)} norms stay for {judge.requirement}, which is now "
        f"{judge.measure(result.model):.4g} on {judge.samples} samples that no fit has seen: "
        f"{', '.join(sites[i].name for i in sorted(kept))}"
    )
    stay = [(sites[i], reason) for i in sorted(kept)]
    return replace(result, kept=stay, notes=[*result.notes, note])


class _Search:
    """The swaps that were tried, by the sites that keep their norm."""

    def __init__(self, model: Model, sites: Sequence[Site], swap: Swapping, judge: Judge) -> None:
        self._model, self._sites, self._swap, self._judge = model, sites, swap, judge
        self._met: dict[frozenset[int], bool] = {}

    def meets(self, kept: frozenset[int]) -> bool:
        if kept not in self._met:
            self._met[kept] = self._judge.meets(self.result(kept).model)
        return self._met[kept]

    def result(self, kept: frozenset[int]) -> PassResult:
        swapped = [site for i, site in enumerate(self._sites) if i not in kept]
        return self._swap(swapped) if swapped else PassResult(self._model, False)
