"""Whether a rewritten model still is the original, and how far off it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.io.data import Data, load_data
from normswap.model import Model
from normswap.progress import Progress
from normswap.validate.approximate import approximate_contract
from normswap.validate.exact import exact_contract
from normswap.validate.pairing import shared_inputs
from normswap.validate.probes import Probe, draw_feeds, make_probes
from normswap.validate.report import Finding, ValidationReport

__all__ = ["Finding", "Probe", "ValidationReport", "make_probes", "validate"]
_BATCH = 32


def validate(
    reference: Model,
    candidate: Model,
    *,
    data: Any = None,
    labels: Any = None,
    contract: Literal["exact", "approximate"] = "exact",
    progress: Progress | None = None,
) -> ValidationReport:
    """Compares ``candidate`` with ``reference`` under a contract (exact.py, approximate.py).

    ``data``: a ``Data`` or whatever ``load_data`` takes. The exact contract takes it in addition to
    the probes, as the kind ``data``; the approximate one in place of random inputs. Inputs that it
    lacks are drawn at random. ``labels``: integers [N], for the approximate contract; by default
    the data's own. ``progress(done, total, what)`` is called before each kind of probe or batch.

    Raises NormswapError for bad data or labels, models whose inputs or outputs do not match, and an
    unknown contract.
    """
    shared = replace(reference, inputs=shared_inputs(reference, candidate))
    given = data
    if data is not None and not isinstance(data, Data):
        given = load_data(data, reference, progress=progress)
    if contract == "exact":
        if labels is not None:
            raise NormswapError("labels are for the approximate contract")
        probes = make_probes(shared)
        if given is None:
            return exact_contract(reference, candidate, probes, progress)
        batches, findings = _batches(shared, given)
        probes += [Probe("data", feeds) for feeds in batches]
        return _with(exact_contract(reference, candidate, probes, progress), findings)
    if contract != "approximate":
        raise NormswapError(f"the contract '{contract}' is neither exact nor approximate")
    if given is None:
        if labels is not None:
            raise NormswapError("labels need the data that they belong to")
        normal = [draw_feeds(shared, "normal", _BATCH, [0, draw]) for draw in range(2)]
        report = approximate_contract(reference, candidate, _told(normal, progress))
        note = "no data was given: the figures are those of random inputs"
        return _with(report, [Finding("data", note, fatal=False)])
    counted = _checked(given.labels if labels is None else labels, given.count)
    batches, findings = _batches(shared, given)
    if counted is not None:  # a remainder that fills no fixed batch has no outputs
        first = next(iter(given.feeds))
        counted = counted[: sum(len(feeds[first]) for feeds in batches)]
    told = _told(batches, progress)
    report = approximate_contract(reference, candidate, told, counted, given.feeds.keys())
    return _with(report, findings)


def _batches(model: Model, data: Data) -> tuple[list[dict[str, Array]], list[Finding]]:
    """The data as feeds for every input of ``model``, and what the reader must know of them."""
    leading = {spec.shape[0] for spec in model.inputs if spec.name in data.feeds}
    fixed = [size for size in leading if isinstance(size, int)]
    if len(fixed) > 1:
        raise NormswapError(f"{model.name}: its inputs have several fixed batches: {fixed}")
    size = fixed[0] if fixed else _BATCH
    count = data.count - data.count % size if fixed else data.count
    if not count:
        raise NormswapError(f"{model.name} takes batches of {size}, the data holds {data.count}")
    findings = []
    if count < data.count:
        note = f"{data.count - count} samples were left out: the model takes batches of {size}"
        findings.append(Finding("data", note, fatal=False))
    if missing := [spec.name for spec in model.inputs if spec.name not in data.feeds]:
        note = f"not in the data and drawn at random: {', '.join(missing)}"
        findings.append(Finding("data", note, fatal=False))
    whole = Data({name: array[:count] for name, array in data.feeds.items()}, None)
    return [_complete(model, feeds, i) for i, feeds in enumerate(whole.batches(size))], findings


def _complete(model: Model, feeds: dict[str, Array], draw: int) -> dict[str, Array]:
    """``feeds`` and, for inputs that it lacks, random ones of fitting sizes."""
    if all(spec.name in feeds for spec in model.inputs):
        return feeds
    sizes: dict[int | str, int] = {}
    for spec in model.inputs:
        if spec.name in feeds:
            sizes |= zip(spec.shape, feeds[spec.name].shape, strict=True)
    fixed = [replace(s, shape=tuple(sizes.get(n, n) for n in s.shape)) for s in model.inputs]
    rows = len(next(iter(feeds.values())))
    drawn = draw_feeds(replace(model, inputs=tuple(fixed)), "normal", rows, [0, draw])
    shapes = {array.shape for array in feeds.values()}
    for name, array in drawn.items():
        if "mask" in name and array.shape in shapes:  # of given ids, all of which count
            drawn[name] = np.ones_like(array)
    return {**drawn, **feeds}


def _checked(labels: Any, count: int) -> Array | None:
    if labels is None:
        return None
    array = np.asarray(labels)
    if not np.issubdtype(array.dtype, np.integer) or array.shape != (count,):
        shape = "x".join(map(str, array.shape)) or "a scalar"
        raise NormswapError(
            f"labels must be {count} integers, one per sample; got {array.dtype.name} {shape}"
        )
    return array


def _told(
    batches: Sequence[dict[str, Array]], progress: Progress | None
) -> Iterator[dict[str, Array]]:
    """The batches, announced to ``progress``."""
    for done, feeds in enumerate(batches):
        if progress:
            progress(done, len(batches), "comparing")
        yield feeds
    if progress:
        progress(len(batches), len(batches), "done")


def _with(report: ValidationReport, findings: list[Finding]) -> ValidationReport:
    return replace(report, findings=[*findings, *report.findings])
