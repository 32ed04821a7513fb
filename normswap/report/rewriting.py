"""The result of ``normswap swap`` and ``normswap fold``, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from normswap.field.certificate import Certificate
from normswap.model import Model
from normswap.norms.site import Site
from normswap.passes.base import NormsFitted, PassResult
from normswap.precision.convert import Conversion

SCHEMA = "normswap.rewriting/1"


@dataclass(frozen=True)
class Rewriting:
    """The passes that ran one after the other, by name, with their results.

    ``asked``: the user named the sites. ``conversion``: to half precision, behind the passes.
    ``output``: where the result was saved, if it was.
    """

    source: Model
    steps: Sequence[tuple[str, PassResult]]
    asked: bool
    conversion: Conversion | None = None
    output: Path | None = None

    @property
    def model(self) -> Model:
        """The model after the last pass and the conversion."""
        if self.conversion is not None:
            return self.conversion.model
        return self.steps[-1][1].model

    @property
    def found(self) -> bool:
        """Whether the first pass met any norm of the kinds that it is about."""
        first = self.steps[0][1]
        return bool(first.done or first.skipped or first.kept)

    @property
    def unmet(self) -> list[tuple[str, str]]:
        """The sites that were asked for and that a pass skipped: (name, reason)."""
        if not self.asked:
            return []
        (_, first), *rest = self.steps
        # Later passes take every site; only those that the first one made were asked for.
        made = {site.name for site in first.done}
        later = [miss for _, result in rest for miss in result.skipped if miss[0].name in made]
        return [(site.name, reason) for site, reason in [*first.skipped, *later]]

    @property
    def passed(self) -> bool:
        """Whether there was something to rewrite, and no site that was asked for was skipped, and
        not all of them had to stay as they are, and every certificate that was asked for is
        given."""
        first = self.steps[0][1]
        done = self.found and not self.unmet and bool(first.done or not first.kept)
        return done and self.refuted is None

    @property
    def refuted(self) -> Certificate | None:
        """A certificate that was asked for and not given."""
        asked = [result.certificate for _, result in self.steps if result.certificate is not None]
        return next((found for found in asked if not found.certified), None)

    def saved_as(self, output: Path) -> Rewriting:
        return replace(self, output=output)

    def to_json(self) -> dict[str, Any]:
        """Keys: ``schema``, ``model``, ``kind``, ``passed``, ``output`` (null if nothing was
        saved) and ``passes``: ``pass``, ``modified``, ``done`` (sites as they stood before),
        ``skipped`` and ``kept`` ({site, reason}) and ``notes`` of each; of a swap that was fitted
        also ``fits`` (``NormFit``) and ``agreement`` (``Agreement``), with ``--certify`` also
        ``certificate`` (``Certificate``); ``conversion`` (null if there
        was none) as ``Conversion`` has it.
        """
        return {
            "schema": SCHEMA,
            "model": self.source.name,
            "kind": self.source.kind,
            "passed": self.passed,
            "output": None if self.output is None else str(self.output),
            "passes": [
                {
                    "pass": name,
                    "modified": result.modified,
                    "done": [site.to_json() for site in result.done],
                    "skipped": _reasons(result.skipped),
                    "kept": _reasons(result.kept),
                    "notes": result.notes,
                    **_cost(result),
                    **_certificate(result),
                }
                for name, result in self.steps
            ],
            "conversion": None if self.conversion is None else self.conversion.to_json(),
        }


def _cost(result: PassResult) -> dict[str, Any]:
    if not isinstance(result, NormsFitted):
        return {}
    return {
        "fits": [fit.to_json() for fit in result.fits],
        "agreement": [output.to_json() for output in result.agreement],
    }


def _certificate(result: PassResult) -> dict[str, Any]:
    return {} if result.certificate is None else {"certificate": result.certificate.to_json()}


def _reasons(sites: Sequence[tuple[Site, str]]) -> list[dict[str, Any]]:
    return [{"site": site.to_json(), "reason": reason} for site, reason in sites]
