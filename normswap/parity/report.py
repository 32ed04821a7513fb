"""What a validation found, as plain values."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from normswap.field.certificate import Certificate
from normswap.model import Step
from normswap.shown import Shown

SCHEMA = "normswap.validation/2"


@dataclass(frozen=True)
class Norm:
    """One norm of a model (see ``Site``): ``width`` is how many numbers it normalises."""

    name: str
    kind: str
    role: str
    tower: str
    width: int


@dataclass(frozen=True)
class ModelSummary:
    """Which model took part.

    ``kind``: 'fx' or 'onnx'. ``path``: None for one made in memory; ``sha256`` and ``size_bytes``
    are those of the file and of the data files beside it. ``runtime``: what ran it, with its
    version. ``norms``: those that were located, in the order of execution. ``history``: what
    normswap did to it, oldest first, as its file tells.
    """

    name: str
    kind: str
    path: str | None
    runtime: str = ""
    size_bytes: int | None = None
    sha256: str | None = None
    norms: list[Norm] = field(default_factory=list)
    history: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class Finding:
    """Something a reader must know. ``fatal`` ones make the validation fail.

    ``kind``: 'error_bound' (an exact contract is broken), 'reference' (the reference is far from
    its own float64 evaluation: nothing can be proven against it), 'float64' (operators that this
    evaluation computes in their own dtype), 'integer' (integers differ),
    'non_finite', 'shape', 'dtype', 'constant' (the output does not depend on the input, so its
    agreement says nothing), 'failed' (a model could not be run), 'identical' (bit-equal outputs),
    'unchanged' (both models are the same, operator by operator),
    'overflow' and 'underflow' (of a simulation: where values are not finite first, and numbers that
    are 0 in the format),
    'site' (the contract is broken at a norm: ``output`` is its name), 'data' (how the data was
    used). ``output``: the reference's name; ``probe``: the kind of probe.
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
    infinite; ``max_abs_error`` is 0 then). ``top1_agreement``, ``top5_agreement`` and the
    accuracies are shares; at the image embeddings of a CLIP, with labels, of zero-shot classes.
    ``kl_mean``: the divergence of the candidate's class probabilities (softmax of the row) from the
    reference's, in nats, the mean over rows.
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
    top5_agreement: float | None = None
    kl_mean: float | None = None
    accuracy_reference: float | None = None
    accuracy_candidate: float | None = None


@dataclass(frozen=True)
class SiteComparison:
    """How close two models are at one norm of the reference that was matched in the candidate.

    ``name``, ``role``, ``tower`` and ``kind``: of the reference's norm, in the order of execution.
    ``candidate_kind``: the norm in its place, None where there is none any more. ``at``: 'output'
    where the norms' own outputs are compared, else the module path or name of the first linear
    layer behind the norm, whose outputs are compared (gamma and beta may have moved into it).
    The metrics are those of metrics.py, all probes or batches together, of the candidate against
    the reference in float64 (exact) or as it runs (approximate). Exact: ``excess`` is the error as
    a multiple of what is allowed, at ``probe``, where it is largest; ``passed`` says excess <= 1.
    """

    name: str
    role: str
    tower: str
    kind: str
    candidate_kind: str | None
    at: str
    sqnr_db: float | None
    cosine_mean: float | None
    cosine_worst: float | None
    max_abs_error: float | None
    excess: float | None = None
    probe: str | None = None
    passed: bool | None = None


@dataclass(frozen=True)
class Histogram:
    """How large errors are: ``counts[i]`` elements have an error between 10**``exponents[i]`` and
    10**``exponents[i + 1]`` times the output's largest absolute value; ``zeros`` have none. Larger
    and smaller ones count in the outermost bins."""

    exponents: list[float]
    counts: list[int]
    zeros: int


@dataclass(frozen=True)
class OutputErrors:
    """Distributions of the errors at one output. ``original``: the reference's own, as it runs,
    against itself in float64 (exact contract), else None. ``candidate``: against the same."""

    name: str
    original: Histogram | None
    candidate: Histogram


@dataclass(frozen=True)
class Retrieval:
    """A CLIP's two embeddings, ``images`` and ``texts`` by the names of the outputs, of ``pairs``
    images and texts.

    Ranks are by cosine. ``overlap_at_k``: the mean share of the reference's ``k`` nearest that are
    among the candidate's. ``recall_at_1``: the share of queries whose own partner (or one with
    equal inputs) is nearest; ``mean_rank``: of the best such partner, counted from 1; both None
    where the data did not hold pairs.
    """

    images: str
    texts: str
    pairs: int
    k: int
    overlap_at_k_image_to_text: float
    overlap_at_k_text_to_image: float
    recall_at_1_reference: tuple[float, float] | None
    recall_at_1_candidate: tuple[float, float] | None
    mean_rank_reference: tuple[float, float] | None
    mean_rank_candidate: tuple[float, float] | None


class Fate(StrEnum):
    """What became of a sample: of one with a label, then of one without. The most telling first."""

    LOST = "only the reference is right"
    WON = "only the candidate is right"
    WRONG = "both are wrong"
    RIGHT = "both are right"
    DIFFERENT = "different classes"
    SAME = "the same class"


@dataclass(frozen=True)
class SampleAnswer:
    """What both models answer for one sample.

    ``row``: its place in the data, from 0. ``label``: its class, None where the data has no labels.
    ``reference``, ``candidate``: the classes that the models give it. ``image``: the sample as the
    models see it, a small PNG or JPEG; None where the data holds no images. It is not in the JSON.
    """

    row: int
    label: int | None
    reference: int
    candidate: int
    image: bytes | None = None

    @property
    def fate(self) -> Fate:
        """Whether the models agree, and with the label."""
        if self.label is None:
            return Fate.SAME if self.reference == self.candidate else Fate.DIFFERENT
        if self.reference == self.label:
            return Fate.RIGHT if self.candidate == self.label else Fate.LOST
        return Fate.WON if self.candidate == self.label else Fate.WRONG


@dataclass(frozen=True)
class Answers:
    """The classes that the models give the samples, at the ``output`` of that name: the one with
    the largest score, or, ``zero_shot``, at a CLIP's image embeddings the one of the nearest texts.

    ``counts``: how many samples there are of each ``Fate``, by its words. ``samples``: a few, those
    where the models part or are wrong first.
    """

    output: str
    zero_shot: bool
    counts: dict[str, int]
    samples: list[SampleAnswer]


@dataclass(frozen=True)
class Bisection:
    """The first place at which two models part, or why none was found.

    ``site``: the module path (or name) of the reference's operator that computes the first value
    without an equal in the candidate, all it is computed from having one; None where none was
    found. ``operator`` and ``value``: that operator and its output. ``norm``: the located norm
    that it belongs to. ``last_equal``: the names of the values it is computed from.
    ``after_norm``, ``before_norm``: the norms of the reference on either side in depth.
    ``error`` and ``allowed``: at that value. ``probe``: which inputs show it; ``reproducer``: the
    file that holds them, for ``--data``. ``note``: a sentence for the reader.
    """

    site: str | None
    operator: str | None = None
    value: str | None = None
    norm: str | None = None
    last_equal: list[str] = field(default_factory=list)
    after_norm: str | None = None
    before_norm: str | None = None
    error: float | None = None
    allowed: float | None = None
    probe: str | None = None
    reproducer: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Provenance:
    """What made the report: ``versions`` of libraries by name, ``machine``, ``threads``, and the
    ``command`` that makes it again (None in Python)."""

    versions: dict[str, str]
    machine: str
    threads: int
    command: str | None = None


@dataclass(frozen=True)
class SiteRanges:
    """How evenly channels are filled at a norm, in the reference and in the candidate: the largest
    magnitude over that of the median channel (``precision/ranges.py``), and the kurtosis.

    ``reads``, ``gives``: of the norm's input and output. The candidate's are None where no norm of
    it has this name.
    """

    name: str
    role: str
    tower: str
    reads_ratio: tuple[float, float | None]
    reads_kurtosis: tuple[float, float | None]
    gives_ratio: tuple[float, float | None]
    gives_kurtosis: tuple[float, float | None]


@dataclass(frozen=True)
class ValidationReport(Shown):
    """The result of a validation, to be printed. ``passed``: no finding is fatal.

    ``contract``: 'exact' or 'approximate'; ``outputs`` are ``ExactOutput`` or ``ApproximateOutput``
    accordingly, in the reference's order. ``sites``: the matched norms in the order of execution;
    ``unmatched``: norms of the reference that could not be, with the reason. ``errors``: the
    distributions, in the order of ``outputs``, integers left out. ``retrieval``: for a CLIP under
    the approximate contract, on data without labels. ``bisection``: where it was asked for.
    ``answers``: under the approximate contract, where an output holds classes. ``ranges``: at each
    norm of the reference, where integers are simulated. ``certificate``: where it was asked for.
    """

    view: ClassVar[str] = "normswap.report.terminal:validation_view"

    contract: str
    passed: bool
    reference: ModelSummary
    candidate: ModelSummary
    outputs: list[ExactOutput] | list[ApproximateOutput]
    findings: list[Finding]
    sites: list[SiteComparison] = field(default_factory=list)
    unmatched: list[tuple[str, str]] = field(default_factory=list)
    errors: list[OutputErrors] = field(default_factory=list)
    retrieval: Retrieval | None = None
    bisection: Bisection | None = None
    provenance: Provenance | None = None
    answers: Answers | None = None
    ranges: list[SiteRanges] = field(default_factory=list)
    certificate: Certificate | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, nothing non-finite among them (null instead).

        Keys: ``schema`` ("normswap.validation/2"), then the fields of this class; nested objects
        have the fields of their classes, and a probe's errors also ``passed``. The schema's number
        goes up when a field is removed or changes its meaning, not when one is added.
        """
        document = {"schema": SCHEMA} | dataclasses.asdict(self)
        if self.answers is not None:
            for sample in document["answers"]["samples"]:
                del sample["image"]
        for output, written in zip(self.outputs, document["outputs"], strict=True):
            if isinstance(output, ExactOutput):
                for errors, probe in zip(output.probes, written["probes"], strict=True):
                    probe["passed"] = errors.passed
        return _plain(document)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
