"""A package that offers a pass to normswap: this is all that it takes, beside its entry point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from normswap.graph.linear import put_constant
from normswap.model import Model
from normswap.options import option
from normswap.passes.base import Pass, PassResult
from normswap.passes.select import other_kind, select_sites


@dataclass(kw_only=True)
class RoundWeights(Pass):
    """gamma and beta rounded to multiples of 1/``steps``; approximate."""

    to: ClassVar[str] = "rounded"
    summary: ClassVar[str] = "gamma and beta are rounded to multiples of 1/steps."
    exact: ClassVar[bool] = False

    steps: int = option(16, "how many steps there are from 0 to 1.")
    towards: str = option("nearest", "which way to round.", choices=("nearest", "zero"))
    target: str = option("both", "what is rounded.", choices=("gamma", "beta", "both"))

    def run(self, model: Model) -> PassResult:
        chosen = select_sites(model.sites, self.sites)
        done = [s for s in chosen if s.kind == "layer_norm" and s.spelling == "op"]
        result = model.copy()
        for site in done:
            node = result.graph.value(site.output).producer
            assert node is not None
            arrays = {"gamma": site.weight, "beta": site.bias}
            for index, (name, array) in enumerate(arrays.items(), start=1):
                if array is not None and self.target in (name, "both"):
                    put_constant(result.graph, node, index, self._rounded(array))
        skipped = [(s, other_kind(s)) for s in chosen if s not in done]
        return PassResult(result if done else model, bool(done), done, skipped)

    def _rounded(self, array: np.ndarray) -> np.ndarray:
        to_integers = np.rint if self.towards == "nearest" else np.trunc
        rounded: np.ndarray = to_integers(array * self.steps) / self.steps
        return rounded
