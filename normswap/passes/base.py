"""What every pass is: a dataclass of options that is called with a model."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

from normswap.field.certificate import Certificate
from normswap.graph.graph import Graph, Node, Value
from normswap.model import Model, Progress, Step, StepFit
from normswap.norms.site import Site
from normswap.options import check_choices
from normswap.parity.held_out import Agreement
from normswap.passes.select import Selection
from normswap.shown import Shown

_NAMED = 5


@dataclass(frozen=True, repr=False)
class PassResult(Shown):
    """What a pass did; ``print(result)`` has a row for each site.

    Attributes:
        model: the new model (the input itself where nothing was modified).
        modified: whether anything was.
        done: the sites that were changed, as they stood before the pass.
        skipped: the others that were asked for, each with the reason.
        notes: decisions that a user should know of, such as towers left alone by default.
        kept: sites that a swap left as they are for the sake of a requirement on the result
            (``--ensure``), each with the reason.
        certificate: whether the new model is proven to be the same function in real arithmetic,
            where that was asked for.

    Examples:
        >>> result = swap(model, to="rmsnorm")
        >>> for site, reason in result.skipped:
        ...     print(site.name, reason)
    """

    view: ClassVar[str] = "normswap.report.terminal:result_view"

    model: Model
    modified: bool
    done: list[Site] = field(default_factory=list)
    skipped: list[tuple[Site, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kept: list[tuple[Site, str]] = field(default_factory=list)
    certificate: Certificate | None = None

    def __repr__(self) -> str:
        counts = f"{len(self.done)} done, {len(self.skipped)} skipped, {len(self.kept)} kept"
        return f"<{type(self).__name__} {counts}: {self.model!r}>"

    def undone(self, original: Model, reason: str) -> PassResult:
        """That ``original`` is left as it is, for a ``reason`` that holds for all of ``done``."""
        skipped = [*((site, reason) for site in self.done), *self.skipped]
        return replace(self, model=original, modified=False, done=[], skipped=skipped, notes=[])

    def recorded(self, name: str) -> PassResult:
        """The same with the pass, by ``name``, in the model's history, if it modified anything."""
        if not self.modified:
            return self
        missed = [(site.name, reason) for site, reason in [*self.skipped, *self.kept]]
        names = [site.name for site in self.done]
        step = Step(name, len(names), missed, list(self.notes), names, self._fitted())
        model = replace(self.model, history=(*self.model.history, step))
        return replace(self, model=model)

    def _fitted(self) -> list[StepFit]:
        """What the history tells of fits to data."""
        return []


@dataclass(frozen=True, repr=False)
class NormsWritten(PassResult):
    """The result of a pass that leaves operators of norms, which a runtime may have kernels for.

    ``values``: the norms that ``normswap.lowering.lower`` may choose kernels for, each with the
    name of its value in the new model.
    """

    values: Mapping[Site, str] = field(default_factory=dict)

    def undone(self, original: Model, reason: str) -> PassResult:
        nothing = super().undone(original, reason)
        return NormsWritten(original, False, [], nothing.skipped, [], nothing.kept)


@dataclass(frozen=True)
class NormFit:
    """What a fitted swap put in the place of one norm.

    ``form``: in words. ``held_out_error``: the share of the variance of the original norm's output
    that is left on every fifth sample. ``multiply_adds``: for each token once all that can be
    folded is, None where that is not known.
    """

    site: Site
    form: str
    held_out_error: float
    multiply_adds: int | None = None

    def to_json(self) -> dict[str, Any]:
        error = self.held_out_error if math.isfinite(self.held_out_error) else None
        return {
            "site": self.site.name,
            "form": self.form,
            "held_out_error": error,
            "multiply_adds": self.multiply_adds,
        }


@dataclass(frozen=True, repr=False)
class NormsFitted(PassResult):
    """The result of a swap that was fitted to data, with what it costs.

    ``fits``: one for each site that is done. ``agreement``: of the model's outputs with the
    original's on every fifth sample of the calibration data; empty where every output depends on
    an input that the data lacks. ``losses``: of each predicted scale the mean square of its
    relative error on the samples held out, if it were a constant and as it is.
    """

    fits: list[NormFit] = field(default_factory=list)
    losses: dict[Site, tuple[float, float]] = field(default_factory=dict)
    agreement: list[Agreement] = field(default_factory=list)

    def _fitted(self) -> list[StepFit]:
        return [StepFit(**fit.to_json()) for fit in self.fits]

    def undone(self, original: Model, reason: str) -> PassResult:
        nothing = super().undone(original, reason)
        return NormsFitted(original, False, [], nothing.skipped, [], nothing.kept)


@dataclass
class ChosenForms:
    """The ``forms`` to write, why the other sites were ``skipped``, and ``notes`` on the choice."""

    forms: dict[Site, str] = field(default_factory=dict)
    skipped: list[tuple[Site, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class NormForms(Protocol):
    """The forms that a pass can write a norm in, each called by its operator."""

    def defaults(self, sites: Sequence[Site]) -> ChosenForms:
        """The form that each of ``sites`` has where nobody chooses."""

    def candidates(self, graph: Graph, site: Site) -> list[str]:
        """The forms that a norm of ``graph`` can be written in, beside that which it has."""

    def region(self, graph: Graph, site: Site) -> tuple[list[Value], list[Value]]:
        """What the nodes in place of which the candidates stand read, and what they compute: the
        norm and, where a candidate computes it too, the sum."""

    def write(self, graph: Graph, site: Site, form: str) -> list[Value]:
        """Writes a norm in a form, in its place; the new values of the first that ``region``
        computes. Raises NormswapError where the graph cannot hold that operator."""


class Chooser(Protocol):
    """Decides in which form a pass writes each norm."""

    def __call__(self, graph: Graph, sites: Sequence[Site], forms: NormForms) -> ChosenForms:
        """The forms for those of ``sites`` that are to be written. ``graph`` is not changed."""


class Refusal(Exception):
    """Raised inside a pass when a site cannot be changed; the message is the reason."""


def called(node: Node) -> str:
    """What a reason calls an operator: by its name, its output and the module that it is from."""
    name = f"{node.op} '{node.output.name}'"
    return f"{name} of '{node.scope}'" if node.scope else name


@dataclass(kw_only=True)
class Pass(abc.ABC):
    """One transformation of a model.

    A subclass is a dataclass whose fields are its options (``normswap.options``). ``to``: the word
    behind ``swap --to`` ('' for a pass that is no swap). ``summary``: what it does, for the help
    text. ``exact``: whether the new model is the same function in real arithmetic. ``needs_data``:
    whether it calibrates, with a field ``data``; ``takes_data``: whether it may. ``needs_target``:
    whether it is about one target, with a field ``chooser``. ``lowering``: those fields of
    ``normswap.Lowering`` that mean something for it; 'target' needs a field ``chooser``, 'kernels'
    a result of ``NormsWritten``.

    Attributes:
        sites: what to change; all for None.
        progress: called by passes that take long.

    Raises:
        NormswapError: a value that is none of an option's choices.

    Examples:
        >>> @dataclass(kw_only=True)
        ... class Double(Pass):
        ...     to: ClassVar[str] = "double"
        ...     summary: ClassVar[str] = "exact, gamma is doubled and the readers halved."
        ...     twice: bool = option(False, "Do it twice.")
        ...
        ...     def run(self, model: Model) -> PassResult: ...
    """

    to: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    exact: ClassVar[bool] = True
    needs_data: ClassVar[bool] = False
    takes_data: ClassVar[bool] = False
    needs_target: ClassVar[bool] = False
    lowering: ClassVar[tuple[str, ...]] = ()

    sites: Selection | None = None
    progress: Progress | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_choices(self, dashes=bool(self.to))

    def __call__(self, model: Model) -> PassResult:
        """Runs the pass; ``model`` itself is not changed.

        Weights that a caller of the model could override are constants of the new one, with a note.
        Nothing is done if the model's own runtime loads ``model`` and does not load the new one.
        """
        return _finished(model, self.run(model))

    @abc.abstractmethod
    def run(self, model: Model) -> PassResult:
        """What the pass does; ``model`` itself may not be changed."""


def _finished(original: Model, result: PassResult) -> PassResult:
    if not result.modified:
        return result
    graph = result.model.graph
    settled = graph.settle_weights()
    if (why := graph.load_refusal()) and not original.graph.load_refusal():
        return result.undone(original, f"the new model could not be loaded: {why}")
    if not settled:
        return result
    names = ", ".join(f"'{name}'" for name in settled[:_NAMED])
    names += f" and {len(settled) - _NAMED} more" * (len(settled) > _NAMED)
    note = f"weights that were also inputs of the model are constants of the new one: {names}"
    return replace(result, notes=[*result.notes, note])
