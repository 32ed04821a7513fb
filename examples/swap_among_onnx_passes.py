"""Run passes of normswap in one Sequential with onnxscript's optimizer, its rules and onnx_ir's.

    python examples/swap_among_onnx_passes.py MODEL.onnx OUT.onnx

onnxscript's optimizer folds constants, normswap writes each LayerNorm as one operator and puts its
gamma and beta into the layers that read it (both exact), a rule of onnxscript's rewriter merges
reshapes, and onnx_ir tidies up. Then the two files are held to the exact contract.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
from onnxscript.optimizer import optimize_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules.common import reshape_reshape_rule

import normswap as ns
from normswap.passes import FoldAffine, Fused
from normswap.pipelines import OnnxPass


class Optimize(ir.passes.InPlacePass):
    """onnxscript.optimizer, which is a function, as a pass."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        optimize_ir(model)
        return ir.passes.PassResult(model, modified=True)


def main(source: Path, target: Path) -> bool:
    """Returns whether the new file keeps the exact contract."""
    fuse, fold = OnnxPass(Fused()), OnnxPass(FoldAffine())
    pipeline = ir.passes.Sequential(
        Optimize(),
        fuse,
        fold,
        RewritePass([reshape_reshape_rule]),
        CommonSubexpressionEliminationPass(),
        RemoveUnusedNodesPass(),
    )
    model = ir.load(source)
    before = len(model.graph)
    model = pipeline(model).model
    ir.save(model, target)

    for done, swap in (("written as one operator", fuse), ("relieved of gamma and beta", fold)):
        print(f"{len(swap.last.done)} norms {done}")
        for site, reason in swap.last.skipped:
            print(f"  {site.name} was left alone: {reason}")
    print(f"{source.name} has {before} nodes, {target.name} has {len(model.graph)}")
    report = ns.validate(ns.load(source), ns.load(target))
    print(f"the same function: {report.passed}")
    return report.passed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, metavar="MODEL.onnx")
    parser.add_argument("target", type=Path, metavar="OUT.onnx")
    options = parser.parse_args()
    main(options.source, options.target)
