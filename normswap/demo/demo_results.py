"""The results of the demo: plain values, and their tables for the terminal and the README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from normswap.parity.report import ExactOutput, ValidationReport
from normswap.report.line import Line
from normswap.report.terminal import table

SCHEMA = "normswap.demo/2"
FIRST = "digits-clip/onnx/folded.approximate.html"
NEXT = (  # on a model of one's own
    "normswap inspect  model.onnx",
    "normswap swap     model.onnx -o fused.onnx --to fused",
    "normswap validate model.onnx fused.onnx --report report.html",
)


@dataclass(frozen=True)
class Parity:
    """An exact contract: whether it holds, and the largest error as a share of what it allows."""

    passed: bool
    share_of_bound: float

    @classmethod
    def of(cls, report: ValidationReport) -> Parity:
        probes = [p for o in report.outputs if isinstance(o, ExactOutput) for p in o.probes]
        shares = [p.max_candidate / p.max_bound for p in probes if p.max_bound]
        return cls(report.passed, max(shares, default=0.0))


@dataclass(frozen=True)
class Accuracies:
    """Shares of the test images that are classified rightly.

    ``copied`` and ``moments``: every norm of the tower a BatchNorm, fitted that way; ``affine``: an
    affine map, and the stream's writers refitted. All folded, without training. The BatchNorms are
    the same in both kinds of graph, and are measured in ONNX only: None in torch graphs.
    """

    original: float
    fused: float
    copied: float | None
    moments: float | None
    affine: float


@dataclass(frozen=True)
class VariantResults:
    """One model in one kind of graph.

    ``norms``: how many it has; ``fused``: in the model whose norms are spelled out, how many became
    one operator. ``swapped``: norms that became affine maps, in ``tower`` ('' for a model of one);
    ``folded``: of these, as far as they were folded; ``left``: norms of that tower after that,
    which should be 0. ``statistics``: computed for one image (and one caption) before and after.
    """

    model: str
    kind: str
    norms: int
    fused: int
    fused_parity: Parity
    swapped: int
    folded: int
    tower: str
    left: int
    folded_parity: Parity
    statistics_before: int
    statistics_after: int
    accuracy: Accuracies

    @property
    def passed(self) -> bool:
        """Whether everything that is exact is, and no norm is left where they were folded."""
        exact = self.fused_parity.passed and self.folded_parity.passed
        gone = self.left == 0 and self.folded == self.swapped
        return exact and gone and self.fused == self.norms


@dataclass(frozen=True)
class Rows:
    """A table and what its columns mean."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    remark: str


@dataclass(frozen=True)
class DemoResults:
    """All variants, and the files of ``folder`` (relative) with what they are."""

    folder: Path
    seconds: float
    variants: list[VariantResults]
    files: dict[str, str]

    @property
    def passed(self) -> bool:
        return all(variant.passed for variant in self.variants)

    def to_json(self) -> dict[str, Any]:
        """Keys: ``schema``, ``passed``, ``seconds``, ``variants`` (the fields of the classes
        above, and ``passed``) and ``files``.
        """
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "seconds": round(self.seconds, 1),
            "variants": [{**asdict(v), "passed": v.passed} for v in self.variants],
            "files": self.files,
        }


def demo_view(results: DemoResults) -> RenderableType:
    """The tables with what they mean, and where the files are, for the terminal."""
    parts: list[RenderableType] = []
    for rows in tables(results):
        shown = table(*rows.head, numeric=rows.head[2:])
        for cells in rows.rows:
            shown.add_row(*cells)
        parts += [Line(rows.title, "bold"), shown, Line(rows.remark, "dim"), Line()]
    for variant in results.variants:
        if not variant.passed:
            parts.append(Line(f"FAILED: {variant.model} as {variant.kind}", "bold red"))
    parts += [Line(f"{len(results.files)} files in {results.folder}, {results.seconds:.0f} s.")]
    if FIRST in results.files:
        parts.append(Line(f"Open first: {results.folder / FIRST}"))
    own = "Next, with a model of your own (.onnx, .pt2, a Hugging Face folder or timm:NAME):"
    parts += [Line(), Line(own, "bold"), *(Line(f"  {command}") for command in NEXT)]
    return Group(*parts)


def readme(results: DemoResults) -> str:
    """The tables and the files that were written, in Markdown."""
    parts = [
        "# What `normswap demo` found",
        "Two small models trained with LayerNorm on scikit-learn's digits (their cards are in "
        "normswap/assets), as torch graphs (fx) and as ONNX.",
    ]
    if FIRST in results.files:
        parts.append(f"To open first: [{FIRST}]({FIRST})")
    for rows in tables(results):
        lines = [rows.head, ["---"] * len(rows.head), *rows.rows]
        markdown = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        parts += [f"## {rows.title}", markdown, rows.remark]
    files = [f"- [{path}]({path}): {what}" for path, what in results.files.items()]
    parts += ["## Files", "\n".join(files), "- [results.json](results.json): these figures"]
    return "\n\n".join(parts) + "\n"


def tables(results: DemoResults) -> list[Rows]:
    """On the norms and the accuracy."""
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
            "folded; nothing was trained after the swap. The BatchNorms are measured in ONNX only.",
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
    shares: tuple[float | None, ...] = astuple(v.accuracy)
    return [v.model, v.kind, *("" if s is None else f"{100 * s:.1f} %" for s in shares)]


def _parity(parity: Parity) -> str:
    return "exact" if parity.passed else "NOT EXACT"
