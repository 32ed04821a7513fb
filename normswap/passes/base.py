"""What every pass is: a callable from a model to a ``PassResult``, registered by its name."""

from __future__ import annotations

import abc
import importlib
import pkgutil
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from normswap.model import Model, Step
from normswap.norms.site import Site


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


class Pass(abc.ABC):
    """One transformation of a model.

    Subclasses are dataclasses whose fields are their options. ``to`` is the word behind
    ``--to`` ('' for a pass that is no swap); ``exact`` says whether the new model is the same
    function in real arithmetic; ``needs_data`` whether it calibrates.
    """

    to: ClassVar[str] = ""
    exact: ClassVar[bool] = True
    needs_data: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, model: Model) -> PassResult:
        """Runs the pass; ``model`` itself is not changed."""


def swap_called(to: str) -> type[Pass] | None:
    """The pass that ``swap`` offers as ``to``, which names its file: ``rmsnorm`` is in
    ``rms_norm.py``. No other is imported where it is found."""
    package = importlib.import_module("normswap.passes")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.replace("_", "") == to:
            importlib.import_module(f"normswap.passes.{module.name}")
            return next((cls for cls in _subclasses(Pass) if cls.to == to), None)
    return None


def swaps() -> dict[str, type[Pass]]:
    """The passes that ``swap`` offers, by their target: every file of this package is looked at."""
    package = importlib.import_module("normswap.passes")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"normswap.passes.{module.name}")
    return {cls.to: cls for cls in sorted(_subclasses(Pass), key=str) if cls.to}


def _subclasses(cls: Any) -> set[type[Pass]]:
    return {c for direct in cls.__subclasses__() for c in {direct, *_subclasses(direct)}}
