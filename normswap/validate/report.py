"""What a validation found, as plain values."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from normswap.model import Model

SCHEMA = "normswap.validation/1"


@dataclass(frozen=True)
class ModelSummary:
    """Which model took part: ``kind`` is 'fx' or 'onnx', ``path`` None for one made in memory."""

    name: str
    kind: str
    path: str | None

    @classmethod
    def of(cls, model: Model) -> ModelSummary:
        return cls(model.name, model.kind, None if model.path is None else str(model.path))


@dataclass(frozen=True)
class Finding:
    """Something a reader must know. ``fatal`` ones make the validation fail.

    ``kind``: 'error_bound' (an exact contract is broken), 'integer' (integers differ),
    'non_finite', 'shape', 'dtype', 'constant' (the output does not depend on the input, so its
    agreement says nothing), 'failed' (a model could not be run), 'identical' (bit-equal outputs),
    'data' (how the data was used). ``output``: the reference's name; ``probe``: the kind of probe.
    """

    kind: str
    message: str
    output: str | None = None
    probe: str | None = None
    fatal: bool = True


@dataclass(frozen=True)
class ProbeErrors:
    """One kind of probe at one output: errors against the reference in float64.

    ``elements``: how many were compared; ``scale``: the largest absolute value among them. For the
    largest and the root-mean-square error: ``*_original`` (after neighbours, where they were
    needed), ``*_candidate`` and ``*_bound``, which the candidate's must not exceed (exact.py
    defines them). In the units of the output.
    """

    probe: str
    elements: int
    scale: float
    max_original: float
    max_candidate: float
    max_bound: float
    rms_original: float
    rms_candidate: float
    rms_bound: float

    @property
    def passed(self) -> bool:
        return self.max_candidate <= self.max_bound and self.rms_candidate <= self.rms_bound


@dataclass(frozen=True)
class ExactOutput:
    """One output under the exact contract; ``probes`` is empty for integers, which are equal or
    a finding."""

    name: str
    candidate_name: str
    dtype: str
    probes: list[ProbeErrors]


@dataclass(frozen=True)
class ApproximateOutput:
    """One output under the approximate contract; the metrics are those of metrics.py.

    ``rows``: how many samples. None: not applicable, or not finite (``sqnr_db`` of equal outputs is
    infinite; ``max_abs_error`` is 0 then). ``top1_agreement`` and the accuracies are shares.
    """

    name: str
    candidate_name: str
    dtype: str
    rows: int
    sqnr_db: float | None
    cosine_mean: float | None
    cosine_worst: float | None
    max_abs_error: float | None
    top1_agreement: float | None = None
    accuracy_reference: float | None = None
    accuracy_candidate: float | None = None


@dataclass(frozen=True)
class ValidationReport:
    """The result of a validation. ``passed``: no finding is fatal.

    ``contract``: 'exact' or 'approximate'; ``outputs`` are ``ExactOutput`` or ``ApproximateOutput``
    accordingly, in the reference's order.
    """

    contract: str
    passed: bool
    reference: ModelSummary
    candidate: ModelSummary
    outputs: list[ExactOutput] | list[ApproximateOutput]
    findings: list[Finding]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, nothing non-finite among them (null instead).

        Keys: ``schema`` ("normswap.validation/1"), then the fields of this class; nested objects
        have the fields of their classes, and a probe's errors also ``passed``. The schema's number
        goes up when a field is removed or changes its meaning, not when one is added.
        """
        document = {"schema": SCHEMA} | dataclasses.asdict(self)
        for output, written in zip(self.outputs, document["outputs"], strict=True):
            if isinstance(output, ExactOutput):
                for errors, probe in zip(output.probes, written["probes"], strict=True):
                    probe["passed"] = errors.passed
        return _plain(document)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
