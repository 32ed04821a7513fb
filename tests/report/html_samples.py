"""Reports made by hand, for the tests of the page."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import replace

from PIL import Image

from normswap.model import Step, StepFit
from normswap.parity.report import (
    Answers,
    ApproximateOutput,
    Bisection,
    ExactOutput,
    Finding,
    Histogram,
    ModelSummary,
    Norm,
    OutputErrors,
    ProbeErrors,
    Provenance,
    Retrieval,
    SampleAnswer,
    SiteComparison,
    ValidationReport,
)
from normswap.timing.bench_report import BenchReport, Measurement, Ratio

HOSTILE = "<script>alert(1)</script>\"'&]]>\x00\u202egnp"


def exact_passed() -> ValidationReport:
    """A ViT whose LayerNorms became RMSNorms."""
    before = vit_norms(12, "layer_norm")
    after = vit_norms(12, "rms_norm")
    probes = [_probe(kind, 0.2 + 0.05 * index) for index, kind in enumerate(PROBES)]
    return ValidationReport(
        "exact",
        True,
        model("vit.onnx", before, 88_312_345),
        model("vit-rms.onnx", after, 88_205_311, [Step("rmsnorm", 25, [], [])]),
        [ExactOutput("logits", "logits", "float32", probes)],
        [],
        [_exact_site(norm, "rms_norm", 0.3 + 0.02 * i) for i, norm in enumerate(before)],
        errors=[_errors("logits", -7.0, -7.1)],
        provenance=provenance(),
    )


def exact_failed() -> ValidationReport:
    """The same, with a fault at block 5."""
    good = exact_passed()
    names = [norm.name for norm in good.reference.norms]
    start = names.index("blocks.5.norm1")
    sites = [
        _exact_site(norm, "rms_norm", 0.4 if i < start else 40.0 * 1.6 ** (i - start))
        for i, norm in enumerate(good.reference.norms)
    ]
    probes = [_probe(kind, 31_000.0 if "mean" in kind else 0.6) for kind in PROBES]
    return ValidationReport(
        "exact",
        False,
        good.reference,
        model("vit-broken.onnx", good.candidate.norms, 88_205_311, [STEP_WITH_SKIPPED]),
        [
            ExactOutput("logits", "logits", "float32", probes),
            ExactOutput("class_ids", "class_ids", "int64", []),
        ],
        [
            Finding("constant", "does not depend on the input", "mask", None, fatal=False),
            Finding(
                "error_bound", "largest error 3.10e-02, allowed 1.00e-06", "logits", "large mean"
            ),
            Finding("site", "error 4.00e+01 times what is allowed", "blocks.5.norm1", "large mean"),
        ],
        sites,
        unmatched=[("head.norm", "its output is not computed in the candidate")],
        errors=[_errors("logits", -7.0, -2.4)],
        bisection=Bisection(
            "blocks.5.norm1",
            "Add",
            "blocks.5.norm1/Add_output_0",
            "blocks.5.norm1",
            ["blocks.4/Add_1_output_0", "blocks.5.norm1.bias"],
            "blocks.4.norm2",
            "blocks.5.norm2",
            3.2e-4,
            8.1e-6,
            "large mean",
            "vit-broken.npz",
            "",
        ),
        provenance=provenance(),
    )


def clip_approximate(depth: int = 24) -> tuple[ValidationReport, BenchReport]:
    """A CLIP whose image tower lost its norms, with retrieval and a benchmark."""
    image = [Norm("visual.ln_pre", "layer_norm", "embedding", "image", 1024)]
    image += vit_norms(depth, "layer_norm", "visual.transformer.resblocks", "image")[:-1]
    image += [Norm("visual.ln_post", "layer_norm", "final", "image", 1024)]
    text = vit_norms(12, "layer_norm", "transformer.resblocks", "text")[:-1]
    text += [Norm("ln_final", "layer_norm", "final", "text", 768)]
    sites = [_close_site(norm, None, 62.0 - 1.1 * i) for i, norm in enumerate(image)]
    sites += [_close_site(norm, "layer_norm", None) for norm in text]
    outputs = [
        ApproximateOutput(
            *("image_embeds", "image_embeds", "float32", 512, 21.3, 0.9963, 0.9712, 0.031, 0.62)
        ),
        ApproximateOutput("text_embeds", "text_embeds", "float32", 512, None, 1.0, 1.0, 0.0),
        ApproximateOutput(
            *("logits_per_image", "logits_per_image", "float32", 512, 19.8, 0.9951, 0.9655, 0.84),
            *(0.9727, 0.9316, 0.0123, 0.931, 0.928),
        ),
    ]
    step = Step(
        "affine",
        2 * depth + 2,
        [(norm.name, "the text tower is left alone unless --sites names it") for norm in text],
        ["fitted on 2048 images"],
        fits=[
            StepFit(norm.name, "affine", 0.12 / (1 + place), 1024 * 1024 if place else 0)
            for place, norm in enumerate(image)
        ],
    )
    report = ValidationReport(
        "approximate",
        True,
        model("clip-vit-l-14.onnx", [*image, *text], 1_712_003_112),
        model("clip-vit-l-14-free.onnx", text, 1_711_402_551, [step]),
        outputs,
        [Finding("identical", "bit-equal in both models", "text_embeds", None, fatal=False)],
        sites,
        errors=[
            OutputErrors("image_embeds", None, _histogram(-2.2)),
            OutputErrors("text_embeds", None, Histogram(_EXPONENTS, [0] * 24, 393_216)),
            OutputErrors("logits_per_image", None, _histogram(-1.8)),
        ],
        retrieval=Retrieval(
            *("image_embeds", "text_embeds", 512, 10, 0.943, 0.951),
            *((0.612, 0.604), (0.607, 0.598), (3.41, 3.52), (3.49, 3.60)),
        ),
        provenance=provenance(),
    )
    return report, bench_of(report)


def answered(labelled: bool = True, pictured: bool = True) -> ValidationReport:
    """A classifier's, with what both models answer for seven samples."""
    label = 3 if labelled else None
    given = [(3, 8), (8, 3), (5, 8), *[(3, 3)] * 4]
    samples = [
        SampleAnswer(row, label, *both, _dot() if pictured else None)
        for row, both in enumerate(given)
    ]
    counts = {fate.value: 1 for fate in dict.fromkeys(sample.fate for sample in samples)}
    return replace(clip_approximate(2)[0], answers=Answers("logits", False, counts, samples))


def bench_of(report: ValidationReport) -> BenchReport:
    ours, theirs = report.reference, report.candidate
    return BenchReport(
        {"pixel_values": "8x3x224x224 float32", "input_ids": "8x77 int64"},
        31,
        2,
        {"onnxruntime": "1.31.1"},
        "x86-64, 2 cores",
        [
            Measurement(
                ours.name, ours.path, "onnxruntime", 812.4, (806.0, 820.1), None, peak_mib=3211.0
            ),
            Measurement(
                *(theirs.name, theirs.path, "onnxruntime", 771.9, (766.0, 778.3)),
                Ratio(0.951, 0.944, 0.957, 0.945, 0.958),
                peak_mib=3190.0,
            ),
            Measurement(
                *(theirs.name, theirs.path, "torch", 815.0, (801.0, 838.0)),
                Ratio(1.003, 0.992, 1.011, 0.985, 1.02),
                peak_mib=3550.0,
            ),
            Measurement(theirs.name, theirs.path, "openvino", error="openvino is not installed"),
        ],
    )


def bare(contract: str, passed: bool = True) -> ValidationReport:
    """Everything that may be missing is."""
    summary = ModelSummary("model", "fx", None)
    return ValidationReport(contract, passed, summary, summary, [], [])


def hostile() -> tuple[ValidationReport, BenchReport]:
    """Names and messages with markup in every place that holds text."""
    text = HOSTILE
    norm = Norm(text, "layer_norm", "final", "image", 4)
    other = Norm(f"{text}2", text, text, text, 4)
    summary = ModelSummary(text, text, text, text, 1, text, [norm, other], [_hostile_step()])
    report = ValidationReport(
        "exact",
        False,
        summary,
        summary,
        [ExactOutput(text, text, text, [_probe(text, math.inf)])],
        [Finding(text, text, text, text)],
        [_exact_site(norm, text, 3.0), _exact_site(other, None, 2.0)],
        [(text, text)],
        [OutputErrors(text, _histogram(-3.0), _histogram(-2.0))],
        None,
        Bisection(text, text, text, text, [text], text, text, 1.0, 0.5, text, text, text),
        Provenance({text: text}, text, 1, text),
        Answers(text, False, {text: 1}, [SampleAnswer(0, 3, 3, 8, _dot())]),
    )
    measured = Measurement(
        text, text, text, 1.0, (0.9, 1.1), Ratio(1, 0.9, 1.1, 0.9, 1.1), peak_mib=1.0
    )
    first = Measurement(text, text, text, 1.0, (0.9, 1.1), None, peak_mib=1.0)
    bench = BenchReport({text: text}, 3, 1, {text: text}, text, [first, measured])
    return report, bench


def vit_norms(depth: int, kind: str, where: str = "blocks", tower: str = "image") -> list[Norm]:
    """Two for each block and a final one."""
    roles = (("norm1", "pre_attention"), ("norm2", "pre_mlp"))
    norms = [
        Norm(f"{where}.{block}.{name}", kind, role, tower, 768)
        for block in range(depth)
        for name, role in roles
    ]
    return [*norms, Norm("norm", kind, "final", tower, 768)]


def model(
    name: str, norms: Iterable[Norm], size: int, history: Iterable[Step] = ()
) -> ModelSummary:
    digest = f"{sum(map(ord, name)):04x}" * 16
    runtime = "onnxruntime 1.31.1"
    return ModelSummary(name, "onnx", name, runtime, size, digest, list(norms), list(history))


def provenance() -> Provenance:
    versions = {"normswap": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.31.1", "numpy": "2.4.6"}
    command = "normswap validate vit.onnx vit-rms.onnx --contract exact --report report.html"
    return Provenance(versions, "x86-64, 2 cores", 2, command)


PROBES = ["normal", "large mean", "tiny variance", "constant image", "outlier channels", "batch 1"]
STEP_WITH_SKIPPED = Step(
    "rmsnorm",
    24,
    [("head.norm", "a reader of the residual stream is not mean-invariant: head.scale")],
    ["the mean is subtracted from 50 writers of the residual stream"],
)
_EXPONENTS = [-12.0 + 0.5 * index for index in range(25)]


def _dot() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), 77).save(file, "PNG")
    return file.getvalue()


def _hostile_step() -> Step:
    fit = StepFit(HOSTILE, HOSTILE, None, None)
    return Step(HOSTILE, 1, [(HOSTILE, HOSTILE)], [HOSTILE], fits=[fit])


def _probe(kind: str, excess: float) -> ProbeErrors:
    bound = 4.1e-6
    error = excess * bound
    return ProbeErrors(kind, 8000, 12.4, 1.6e-6, error, bound, 2.2e-7, error / 9, bound / 8)


def _exact_site(norm: Norm, kind: str | None, excess: float) -> SiteComparison:
    return SiteComparison(
        *(norm.name, norm.role, norm.tower, norm.kind, kind, f"{norm.name}.reader"),
        *(120.0 - 20 * math.log10(excess), 1.0, 0.999999, 1e-6 * excess),
        *(excess, "large mean", excess <= 1),
    )


def _close_site(norm: Norm, kind: str | None, sqnr: float | None) -> SiteComparison:
    off = 0.0 if sqnr is None else 10 ** (-sqnr / 10)
    return SiteComparison(
        *(norm.name, norm.role, norm.tower, norm.kind, kind, "output"),
        *(sqnr, 1 - off / 2, 1 - 4 * off, 20 * math.sqrt(off)),
    )


def _errors(name: str, original: float, candidate: float) -> OutputErrors:
    return OutputErrors(name, _histogram(original), _histogram(candidate))


def _histogram(centre: float) -> Histogram:
    middles = [edge + 0.25 for edge in _EXPONENTS[:-1]]
    counts = [round(9000 * math.exp(-((middle - centre) ** 2) / 0.8)) for middle in middles]
    return Histogram(_EXPONENTS, counts, 300)
