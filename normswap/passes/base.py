"""What every pass is: a dataclass of options that is called with a model."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field, replace
from typing import ClassVar

from normswap.model import Model, Progress, Step
from normswap.norms.site import Site
from normswap.options import check_choices
from normswap.passes.select import Selection


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    ``model``: the new model (the input itself where nothing was modified). ``done`` and
    ``skipped``: what was asked for, as the sites stood before the pass; a skipped one carries the
    reason. ``kept``: sites that a swap left as they are for the sake of a requirement on the result
    (``--ensure``), with the reason. ``notes``: decisions that a user should know of, such as towers
    left alone by default.
    """

    model: Model
    modified: bool
    done: list[Site] = field(default_factory=list)
    skipped: list[tuple[Site, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kept: list[tuple[Site, str]] = field(default_factory=list)

    def recorded(self, name: str) -> PassResult:
        """The same with the pass, by ``name``, in the model's history, if it modified anything."""
        if not self.modified:
            return self
        missed = [(site.name, reason) for site, reason in [*self.skipped, *self.kept]]
        step = Step(name, len(self.done), missed, list(self.notes))
        model = replace(self.model, history=(*self.model.history, step))
        return replace(self, model=model)


class Refusal(Exception):
    """Raised inside a pass when a site cannot be changed; the message is the reason."""


@dataclass(kw_only=True)
class Pass(abc.ABC):
    """One transformation of a model.

    A subclass is a dataclass whose fields are its options (``normswap.options``). ``to``: the word
    behind ``swap --to`` ('' for a pass that is no swap). ``summary``: what it does, for the help
    text. ``exact``: whether the new model is the same function in real arithmetic. ``needs_data``:
    whether it calibrates, with a field ``data``.

    ``sites``: what to change; all for None. ``progress``: called by passes that take long.
    Raises NormswapError for a value that is none of an option's choices.

    Example::

        @dataclass(kw_only=True)
        class Double(Pass):
            to: ClassVar[str] = "double"
            summary: ClassVar[str] = "exact, gamma is doubled and the readers halved."
            twice: bool = option(False, "Do it twice.")

            def __call__(self, model: Model) -> PassResult: ...
    """

    to: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    exact: ClassVar[bool] = True
    needs_data: ClassVar[bool] = False

    sites: Selection | None = None
    progress: Progress | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_choices(self, dashes=bool(self.to))

    @abc.abstractmethod
    def __call__(self, model: Model) -> PassResult:
        """Runs the pass; ``model`` itself is not changed."""
