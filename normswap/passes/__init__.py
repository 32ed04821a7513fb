"""The transformations, one per file. ``base.py`` says what a pass is."""

from normswap.passes.affine import Affine
from normswap.passes.base import Pass, PassResult, swaps
from normswap.passes.batch_norm import BatchNorm
from normswap.passes.ffn_batch_norm import InsertFfnBatchNorm
from normswap.passes.fold import Fold
from normswap.passes.fold_affine import FoldAffine
from normswap.passes.fused import Fused
from normswap.passes.rms_norm import RmsNorm

__all__ = [
    "Affine",
    "BatchNorm",
    "Fold",
    "FoldAffine",
    "Fused",
    "InsertFfnBatchNorm",
    "Pass",
    "PassResult",
    "RmsNorm",
    "swaps",
]
