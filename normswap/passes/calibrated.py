"""What the swaps that are fitted to calibration data share: sites, rows, the sweep."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import ClassVar

import numpy as np

from normswap import distributed
from normswap.errors import NormswapError
from normswap.fit.activations import MEMORY
from normswap.fit.calibration import Batches, calibration_batches, own_share
from normswap.fit.sweep import HELD_OUT, Readings, Stop, sweep
from normswap.fit.text_masks import text_masks
from normswap.fit.tokens import TOKENS, Masks, Rows, rows, special_positions
from normswap.graph.graph import Array, Graph, Node, Runner, Value
from normswap.io.data import Data
from normswap.model import Model
from normswap.norms.site import Site
from normswap.options import option
from normswap.parity.held_out import HeldOut, RunBy
from normswap.parity.requirement import Judge, Requirement
from normswap.passes.balance import balance
from normswap.passes.base import NormFit, NormsFitted, Pass, PassResult, Refusal
from normswap.passes.ensure import Swapping, swap_ensuring
from normswap.passes.fold import Fold
from normswap.passes.select import Selection, select_sites, why_left
from normswap.precision.integers import INTEGER_FORMATS, IntegerFormat, Range
from normswap.precision.quantised import QuantisedModel

_FEWEST = 2  # samples, to fit anything to
_JUDGED = 5  # every fifth sample
_USELESS = 1.0  # share of the variance of a norm's output that its mean alone leaves
KINDS = ("layer_norm", "rms_norm")


@dataclass(frozen=True)
class Fitted:
    """A site with what its fit has to know: the ``masks`` of the tokens that count (None: all do)
    and which positions are ``special`` (class, register and [BOS] tokens; None: none that are
    fitted apart). ``form``: the integers that its input will be in, where it is fitted for them."""

    site: Site
    masks: Masks | None
    special: Array | None = None
    form: IntegerFormat | None = None

    @property
    def axis(self) -> int:
        return self.site.axes[0]

    @property
    def channels(self) -> int:
        (size,) = self.site.normalized_shape
        return size

    def rows(self, readings: Readings, axes: Sequence[int]) -> Iterator[Rows]:
        return rows(as_read(readings, self.form), axes, self.masks)


@dataclass
class Plan:
    """What a calibrated swap is about to do: ``stops`` of the sweep, which edit ``graph``, and what
    the user is to know. ``located``: all norms of the original. ``stays``: sites that keep a scale
    and shift for each of so many tokens. ``refused``: sites that stay as they are, with the reason.
    ``fits``: of the others. ``losses``: of predicted scales (``NormsFitted``). ``form``: the
    integers that the result is fitted for."""

    original: Graph
    graph: Graph
    batches: Batches
    located: Sequence[Site]
    form: IntegerFormat | None = None
    stops: list[Stop] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stays: dict[str, int] = field(default_factory=dict)
    refused: dict[Site, str] = field(default_factory=dict)
    fits: list[NormFit] = field(default_factory=list)
    losses: dict[Site, tuple[float, float]] = field(default_factory=dict)


class SwapStop(Stop):
    """A stop that swaps one norm, or leaves it where the model's dtype cannot hold the constants of
    the new one."""

    def __init__(self, plan: Plan, fitted: Fitted) -> None:
        self.reads = (plan.graph.value(fitted.site.input),)
        self.targets = (plan.original.value(fitted.site.output),)
        self._plan, self._fitted = plan, fitted

    def edit(self, reads: Sequence[Value], readings: Readings) -> Mapping[Value, Value]:
        old = self._plan.graph.value(self._fitted.site.output)
        try:
            new = self.fitted_value(reads[0], readings, old.producer)
        except Refusal as refusal:
            self._plan.refused[self._fitted.site] = str(refusal)
            self._plan.stays.pop(self._fitted.site.name, None)
            return {}
        self._plan.graph.replace_uses(old, new)
        return {old: new}

    @abc.abstractmethod
    def fitted_value(self, x: Value, readings: Readings, like: Node | None) -> Value:
        """What takes the place of the norm of ``x``; ``like``: the node whose metadata it gets.
        Raises Refusal."""


@dataclass(kw_only=True)
class Calibrated(Pass):
    """A swap of LayerNorms and RMSNorms over one axis that is fitted to calibration data.

    Attributes:
        data: unlabelled inputs, as ``load_data`` gives them; ``swap`` fills it in.
        sites: see ``select_sites``; without it a model with an image tower has that tower swapped
            and the other left alone.
        tokens: 'all' fits all tokens together, 'class' sets class and register tokens apart,
            'position' fits each position; groups leave a scale and shift per token in the graph.
        ensure: a requirement such as 'top1>=0.99', 'cosine>=0.99' or 'sqnr>=20' (dB), held on every
            fifth sample, which no fit sees then: the norms that cost too much stay, and are
            reported as ``kept``.
        for_: the name of an integer format (``INTEGER_FORMATS``) that the result is to be quantised
            to. Everything is fitted to inputs that are rounded to it, streams that no norm reads
            any more change their variables (``balance``), and held-out samples, those of ``ensure``
            too, judge the folded model rounded to it. None for none.
        memory: bytes of activations to hold in memory; what is beyond it waits in a temporary file.

    Raises:
        NormswapError: a requirement that is none, no data, too few samples, and values that are not
            finite.
    """

    exact: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True

    data: Data | None = None
    tokens: str = option(
        "all",
        "fit all tokens together (the default), class and register tokens apart, or each "
        "position; the last two leave a scale and shift per token.",
        choices=TOKENS,
    )
    ensure: str | None = option(
        None,
        "keep as few norms as it takes for the result to agree with MODEL on a fifth of DATA: "
        "top1 (0 to 1), cosine, or sqnr (dB).",
        metavar="METRIC>=NUMBER",
    )
    for_: str | None = option(
        None,
        "fit and judge for a result that is to be quantised: weights and what products read in "
        "integers.",
        choices=tuple(INTEGER_FORMATS),
    )
    memory: int = MEMORY

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ensure is not None:
            Requirement.parse(self.ensure)

    def run(self, model: Model) -> PassResult:
        data = needed_data(self.data, self.to)
        if data.count < _FEWEST:
            raise NormswapError(
                f"--to {self.to}: one sample is too few to fit anything to; give it hundreds"
            )
        located = model.sites
        chosen, notes = _default_tower(located, self.sites)
        todo = [s for s in chosen if not _reason(s)]
        skipped = [(s, _reason(s)) for s in chosen if s not in todo]
        if not todo:
            return PassResult(model, False, [], skipped, notes)
        if self.tokens != "all":
            _check_fixed_tokens(model, todo, self.tokens)
        if self.ensure is None:
            result = self.swapping(model, located, todo, data)(todo)
            fitting, judging = data.split(HELD_OUT)
            held_out = _held_out(model, todo, judging, self._run_by(model, todo, fitting))
        else:
            fitting, judging = data.split(_JUDGED)
            if not judging.count:
                raise NormswapError(
                    f"--ensure: {data.count} samples are too few, every fifth is kept back to "
                    f"judge by; give it hundreds"
                )
            requirement = Requirement.parse(self.ensure)
            batches = calibration_batches(model, todo, judging)
            judge = Judge(model, batches, requirement, self._run_by(model, todo, fitting))
            result = self.ensured(model, todo, fitting, judge)
            held_out = judge.held_out
        if held_out is not None and isinstance(result, NormsFitted) and result.modified:
            result = replace(result, agreement=held_out.agreement(result.model))
        return replace(result, skipped=[*skipped, *result.skipped], notes=[*notes, *result.notes])

    def ensured(self, model: Model, todo: Sequence[Site], data: Data, judge: Judge) -> PassResult:
        """The sites ``todo`` swapped, but for those that have to stay for ``judge`` to agree."""
        swap = self.swapping(model, model.sites, todo, data)
        return swap_ensuring(model, todo, swap, judge, self.progress)

    def swapping(
        self, model: Model, located: Sequence[Site], todo: Sequence[Site], data: Data
    ) -> Swapping:
        """A swap of some of ``todo``, fitted to ``data``."""
        batches = calibration_batches(model, todo, own_share(data))
        fitted = fitted_sites(model.graph, located, todo, batches)
        fitted = [replace(f, form=self._form) for f in fitted]
        if self.tokens == "class":
            fitted = with_special(model.graph, located, fitted, batches)

        def swap(sites: Sequence[Site]) -> PassResult:
            chosen = [f for f in fitted if f.site in sites]
            return self._swap(model, batches, located, chosen)

        return swap

    def _swap(
        self, model: Model, batches: Batches, located: Sequence[Site], sites: Sequence[Fitted]
    ) -> PassResult:
        """All of ``sites`` swapped, fitted to ``batches``."""
        result = model.copy()
        plan = Plan(model.graph, result.graph, batches, located, self._form)
        self.plan(plan, sites)
        steps = sweep(model.graph, result.graph, batches, plan.stops, self.memory)
        for count, _ in enumerate(steps, 1):
            if self.progress:
                self.progress(count, len(plan.stops), "fitting")
        skipped = list(plan.refused.items())
        done = [f.site for f in sites if f.site not in plan.refused]
        if not done:
            return PassResult(model, False, [], skipped)
        result.graph.prune()
        notes = [*plan.notes, *([_stays(plan.stays)] if plan.stays else [])]
        if plan.form is not None:
            result, added = balance(result, done, batches, plan.form)
            notes += added
        return NormsFitted(result, True, done, skipped, notes, fits=plan.fits, losses=plan.losses)

    @property
    def _form(self) -> IntegerFormat | None:
        return None if self.for_ is None else INTEGER_FORMATS[self.for_]

    def _run_by(self, model: Model, sites: Sequence[Site], data: Data) -> RunBy | None:
        """How models that are judged are run: folded and rounded, if they are to be quantised."""
        form = self._form
        if form is None:
            return None
        batches = calibration_batches(model, sites, data)

        def run_by(swapped: Model, inputs: Sequence[str], outputs: Sequence[int]) -> Runner:
            folded = Fold()(swapped).model
            graph = folded.graph
            values = [graph.value(n) for n in inputs], [graph.outputs[i] for i in outputs]
            return QuantisedModel(folded, form.name, batches).slice(*values)

        return run_by

    @abc.abstractmethod
    def plan(self, plan: Plan, sites: Sequence[Fitted]) -> None:
        """Adds the stops that swap ``sites``, and notes."""


class _AsRead(Readings):
    """Readings whose first array is what a product in integers reads of it."""

    def __init__(self, readings: Readings, form: IntegerFormat) -> None:
        super().__init__((), readings.samples, readings.examples)
        self._readings, self._form = readings, form
        own = Range.of(first for first, *_ in readings)
        self._range = reduce(Range.merged, distributed.gathered(own))

    def __iter__(self) -> Iterator[list[Array]]:
        for first, *others in self._readings:
            yield [self._form.rounded_activation(first, self._range), *others]


def as_read(readings: Readings, form: IntegerFormat | None) -> Readings:
    """``readings`` as a product in integers of ``form`` reads the first of them."""
    return readings if form is None else _AsRead(readings, form)


def _held_out(
    model: Model, sites: Sequence[Site], samples: Data, run_by: RunBy | None
) -> HeldOut | None:
    """The model's outputs on ``samples``; None where these are fewer than fill a batch."""
    try:
        return HeldOut(model, calibration_batches(model, sites, samples), run_by)
    except NormswapError:
        return None


def fitted_sites(
    graph: Graph, located: Sequence[Site], todo: Sequence[Site], batches: Batches
) -> list[Fitted]:
    """The sites ``todo`` of a model, ``located`` all of its sites, as its data shows them."""
    fitted = []
    masks: dict[tuple[str, bool], Masks | None] = {}
    for site in todo:
        final = next((s for s in reversed(_tower(located, site)) if s.role == "final"), None)
        key = site.tower, final is not None and site.output == final.output
        if key not in masks:
            is_text = site.tower == "text"
            masks[key] = text_masks(graph, site, final, batches) if is_text else None
        fitted.append(Fitted(site, masks[key]))
    return fitted


def with_special(
    graph: Graph, located: Sequence[Site], fitted: Sequence[Fitted], batches: Batches
) -> list[Fitted]:
    towers = {f.site.tower: _tower(located, f.site) for f in fitted}
    special = {name: special_positions(graph, sites, batches) for name, sites in towers.items()}
    return [replace(f, special=special[f.site.tower]) for f in fitted]


def _tower(located: Sequence[Site], site: Site) -> list[Site]:
    return [other for other in located if other.tower == site.tower]


def needed_data(data: Data | None, to: str) -> Data:
    """The calibration data of a pass. Raises NormswapError where it has none."""
    if data is None:
        raise NormswapError(f"swap: '{to}' needs calibration data")
    return data


def check_finite(site: Site, *arrays: Array) -> None:
    """Raises NormswapError unless the statistics ``arrays`` at a site are finite."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise NormswapError(
            f"'{site.name}': its activations on the calibration data are not finite, or overflow; "
            f"calibrate the model in float32"
        )


def check_held_out(plan: Plan, to: str) -> None:
    """Raises NormswapError where the samples are too few for a fit that holds every fifth out."""
    count = sum(len(next(iter(batch.values()))) for batch in plan.batches)
    if count < HELD_OUT:
        raise NormswapError(
            f"--to {to}: {count} samples are too few, every fifth is held out to choose how far to "
            f"trust the others; give it hundreds"
        )


def check_useful(error: float) -> None:
    """Raises Refusal for a fit that leaves more than all of the variance of the norm's output on
    the samples held out: it would explode on what the calibration has not seen."""
    if not error <= _USELESS:
        raise Refusal(
            f"what was fitted is off by {error:.3g} of its output's variance on held-out samples, "
            f"its mean alone by {_USELESS:g}; give it more data"
        )


def _check_fixed_tokens(model: Model, sites: Sequence[Site], tokens: str) -> None:
    graph = model.graph
    read = {v.name for v in graph.sources(graph.value(site.output) for site in sites)}
    for spec in model.inputs:
        if spec.name in read and any(isinstance(size, str) for size in spec.shape[1:]):
            raise NormswapError(
                f"{model.name}: --tokens {tokens} leaves constants for each token, but the sizes "
                f"of '{spec.name}' are not fixed; export it with fixed sizes or fit all tokens "
                f"together"
            )


def _default_tower(sites: Sequence[Site], wanted: Selection | None) -> tuple[list[Site], list[str]]:
    chosen = select_sites(sites, wanted)
    towers = {site.tower for site in chosen}
    if wanted is not None or not {"image", "text"} <= towers:
        return chosen, []
    kept = [site for site in chosen if site.tower == "text"]
    note = (
        f"the image tower was swapped; {len(kept)} sites of the text tower were left as they are "
        f"(ask for them with --sites tower=text)"
    )
    return [site for site in chosen if site.tower != "text"], [note]


def _stays(stays: dict[str, int]) -> str:
    tokens = ", ".join(map(str, sorted(set(stays.values()))))
    return f"a scale and shift for each of {tokens} tokens stay at {len(stays)} sites, unfolded"


def _reason(site: Site) -> str:
    """Why no norm is fitted in its place; '' if one may be."""
    if left := why_left(site, KINDS):
        return left
    several = f"it normalises over {len(site.axes)} axes, a BatchNorm has one"
    return "" if len(site.axes) == 1 else several
