"""Powers of two in the weights, so that nothing in the model is too large for half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from normswap.errors import NormswapError
from normswap.io.data import Data
from normswap.model import Model
from normswap.options import option
from normswap.passes.base import Pass, PassResult
from normswap.passes.rescale_plan import Plan, called
from normswap.passes.select import select_sites
from normswap.precision.formats import format_called
from normswap.precision.limits import Limits
from normswap.precision.magnitudes import magnitudes


@dataclass(kw_only=True)
class Rescale(Pass):
    """x becomes 2^-k x on every stream that comes too near to what half precision holds.

    Exact, and of powers of two: in float32 the outputs are the same to the bit, but for values near
    its smallest ones. ``data`` shows how large each value becomes. For each stream k is the
    smallest that leaves ``headroom``; what writes to it takes 2^-k (embeddings, positions, linear
    layers, the gamma and beta of norms), linear layers that read it take 2^k, and norms do not see
    it: their epsilon takes 4^-k. In front of an output of the model one Mul undoes it. By the same
    rules values inside blocks are scaled between two linear layers: the values of an attention,
    queries against keys or against the constant that scales the logits, and what a ReLU gives.
    A norm that is spelled out keeps its spelling where ``dtype`` holds its squares and its epsilon
    then, else it becomes the operator of its kind, whose statistics are float32.
    Skips, with the reason, norms on streams that anything reads which sees a scale; the notes name
    the values that stay too large, such as those in front of a GELU.

    Attributes:
        data: unlabelled inputs, as ``load_data`` gives them; ``swap`` fills it in.
        headroom: binary places to leave, beyond the largest magnitudes on the data.
        dtype: of the model that is to be made of the result, 'float16' or 'bfloat16'.
        sites: streams of which norms; see ``select_sites``. All, and all values, by default.

    Raises:
        NormswapError: a dtype that is no half precision, headroom below 0, and data that is missing
            or unfit.

    Examples:
        >>> result = swap(model, Rescale(headroom=2), data="images")
        >>> result.notes
    """

    to: ClassVar[str] = "rescale"
    summary: ClassVar[str] = "exact, powers of two in the weights leave half precision headroom."
    exact: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    data: Data | None = None
    headroom: int = option(
        2,
        "binary places to leave beyond the largest magnitudes on DATA (2 by default).",
        metavar="BITS",
        type=int,
    )
    dtype: str = "float16"

    def __post_init__(self) -> None:
        super().__post_init__()
        format_called(self.dtype)
        if self.headroom < 0:
            raise NormswapError(f"--headroom: {self.headroom} is below 0; give it 0 or more")

    def run(self, model: Model) -> PassResult:
        if self.data is None:
            raise NormswapError("swap: 'rescale' needs calibration data")
        chosen = select_sites(model.sites, self.sites)
        measured = magnitudes(model, self.data, self.progress)
        by_name = {value.name: found for value, found in measured.values.items()}
        limits = Limits(format_called(self.dtype), self.headroom, by_name)
        only = None if self.sites is None else frozenset(chosen)
        operators: dict[str, str] = {}  # that norms may be written as, or why not
        while True:  # a newer opset makes another graph, in which all is planned anew
            result = model.copy()
            for name in [name for name, why in operators.items() if not why]:
                result.graph.require(name)
            plan = Plan(result.graph, model.sites, limits, operators, only)
            plan.make()
            if not plan.wanted:
                break
            operators |= {name: _why_not_writable(model, name) for name in plan.wanted}
        skipped = [(site, plan.why_not(site)) for site in chosen if site not in plan.done]
        if plan.modifies:
            plan.write()
        notes = list(plan.notes)
        for value, found in measured.logits.items() if only is None else ():
            if limits.halvings(found.largest):
                told = limits.says(f"the logits inside {called(value)}", found.largest)
                notes.append(f"{told}; what a softmax reads cannot be scaled")
        if not plan.modifies:
            return PassResult(model, False, [], skipped, notes)
        done = [site for site in model.sites if site in plan.done]
        return PassResult(result, True, done, skipped, notes)


def _why_not_writable(model: Model, name: str) -> str:
    """Why the graph cannot have an operator; '' if it can."""
    try:
        model.copy().graph.require(name)
    except NormswapError as error:
        return str(error)
    return ""
