"""The transformations, one per file. ``base.py`` says what a pass is."""

from typing import TYPE_CHECKING

from normswap.lazy import lazily
from normswap.passes.base import Pass, PassResult, swap_called, swaps

if TYPE_CHECKING:
    from normswap.passes.affine import Affine
    from normswap.passes.batch_norm import BatchNorm
    from normswap.passes.ffn_batch_norm import InsertFfnBatchNorm
    from normswap.passes.fold import Fold
    from normswap.passes.fold_affine import FoldAffine
    from normswap.passes.fused import Fused
    from normswap.passes.rms_norm import RmsNorm
else:  # those that calibrate need torch, the others do not
    __getattr__ = lazily(
        __name__,
        {
            "Affine": "normswap.passes.affine",
            "BatchNorm": "normswap.passes.batch_norm",
            "Fold": "normswap.passes.fold",
            "FoldAffine": "normswap.passes.fold_affine",
            "Fused": "normswap.passes.fused",
            "InsertFfnBatchNorm": "normswap.passes.ffn_batch_norm",
            "RmsNorm": "normswap.passes.rms_norm",
        },
    )

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
    "swap_called",
    "swaps",
]
