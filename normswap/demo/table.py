"""The results as rows of text, for the terminal and for the folder's README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from normswap.demo.results import DemoResults, Parity, VariantResults
from normswap.demo.timing import THREADS
from normswap.timing.paired import Timing


@dataclass(frozen=True)
class Rows:
    """A table with what its columns mean."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    remark: str


def tables(results: DemoResults) -> list[Rows]:
    """What became of the norms, of the accuracy, and of the time per batch."""
    variants = results.variants
    return [
        Rows(
            "Norms",
            ("model", "graph", "norms", "fused", "swapped", "folded", "left", "statistics"),
            [_norms(variant) for variant in variants],
            "fused: spelled-out LayerNorms that became one operator. swapped: LayerNorms of the "
            "ViT, or of CLIP's image tower, that became affine maps. folded: those that became "
            "part of the weights; left: norms that tower still has. exact: `normswap validate` "
            "holds, on random probes and test images. statistics: means and variances computed "
            "per image (and caption), before and after.",
        ),
        Rows(
            "Accuracy on the 540 test images",
            ("model", "graph", "original", "fused", "batchnorm, copy", "moments", "affine"),
            [_accuracies(variant) for variant in variants],
            "digits-clip is scored zero-shot. The BatchNorms and the affine maps (with the writers "
            "of the residual stream) are fitted to the training images without their labels, and "
            "folded; nothing was trained after the swap.",
        ),
        Rows(
            "Time per batch",
            ("model", "graph", "original", "spelled-out", "fused", "folded"),
            [_times(variant) for variant in variants],
            f"Medians of rounds in turn on {THREADS} thread; ratios to original in the same round "
            "with their quartiles. Models this small are mostly call overhead, and ONNX Runtime "
            "fuses norms itself when it loads a model: this says little about real models.",
        ),
    ]


def _norms(v: VariantResults) -> list[str]:
    return [
        v.model,
        v.kind,
        str(v.norms),
        f"{v.fused}, {_parity(v.fused_parity)}",
        str(v.swapped),
        f"{v.folded}, {_parity(v.folded_parity)}",
        str(v.left),
        f"{v.statistics_before} -> {v.statistics_after}",
    ]


def _accuracies(v: VariantResults) -> list[str]:
    return [v.model, v.kind, *(f"{100 * share:.1f} %" for share in astuple(v.accuracy))]


def _times(v: VariantResults) -> list[str]:
    ratios = (_ratio(v.timing[name]) for name in ("spelled-out", "fused", "folded"))
    return [v.model, v.kind, f"{v.timing['original'].milliseconds:.2f} ms", *ratios]


def _parity(parity: Parity) -> str:
    return "exact" if parity.passed else "NOT EXACT"


def _ratio(timing: Timing) -> str:
    return f"{timing.ratio:.2f} ({timing.low:.2f}-{timing.high:.2f})"
