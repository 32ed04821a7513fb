"""The norms that ``compare`` trains beside each other, made from one model's initial weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from normswap.errors import NormswapError
from normswap.io.data import Data
from normswap.model import Model
from normswap.passes.batch_norm import BatchNorm
from normswap.train.batch_norms import batch_norms
from normswap.train.progressive import LayerNormOf, make_progressive

LN, BN, FFN_BN, REP_BN = "ln", "bn", "bn-ffn", "repbn"
VARIANTS: Mapping[str, str] = {
    LN: "LN",
    BN: "BN",
    FFN_BN: "BN + FFN BN",
    REP_BN: "RepBN, progressive",
}
AFFINE, PREDICTED = "ln-affine", "ln-predicted"
TAKEN_OUT: Mapping[str, str] = {
    AFFINE: "LN, then affine",
    PREDICTED: "LN, then predicted",
}
"""Forms without norms of a model that was trained with LayerNorm."""
TITLES: Mapping[str, str] = {**VARIANTS, **TAKEN_OUT}


def check_variants(names: tuple[str, ...]) -> None:
    """Raises NormswapError for an unknown variant, and for a choice without LN, which the others
    are held against."""
    for name in names:
        if name not in VARIANTS:
            raise NormswapError(f"--variants: '{name}' is none of {', '.join(VARIANTS)}")
    if LN not in names or len(set(names)) != len(names) or len(names) < 2:
        raise NormswapError(f"--variants: name {LN} and one or more others, each once")


def untrained(variant: str, model: Model, calibration: Data) -> fx.GraphModule:
    """The module to be trained: ``model`` with the norms of ``variant`` in place of its own.

    All weights are those of ``model``; a BatchNorm gets gamma and beta of the LayerNorm that it
    replaces, and its first running statistics from ``calibration``. The BatchNorms in the FFNs are
    new: gamma 1 and beta 0, as in a network that is built with them (Yao et al., ICCVW 2021).
    RepBN(x) = BN(x) + alpha * x comes in by and by (``progressive.py``).

    Raises NormswapError for a model without a LayerNorm, with one that cannot become a BatchNorm,
    or, for 'bn-ffn', without an FFN of two stages of linear layers.
    """
    if variant == LN:
        return model.to_torch()
    ffn = variant == FFN_BN
    swap = BatchNorm(data=calibration, sites="*", fit="copy", ffn_batchnorm=ffn)
    result = swap(model)
    for site, reason in result.skipped:
        raise NormswapError(f"{model.name}: '{site.name}' cannot become a BatchNorm: {reason}")
    if not result.done:
        raise NormswapError(f"{model.name}: has no LayerNorm to compare; give a LayerNorm model")
    module = result.model.to_torch()
    replaced = {site.name for site in result.done}
    if ffn:
        fresh = [norm for name, norm in batch_norms(module).items() if name not in replaced]
        if not fresh:
            raise NormswapError(
                f"{model.name}: no FFN takes a BatchNorm ({result.notes[0]}); leave {FFN_BN} out "
                f"of --variants"
            )
        for norm in fresh:
            torch.nn.init.ones_(norm.weight)
            torch.nn.init.zeros_(norm.bias)
    if variant == REP_BN:
        norms = {site.name: LayerNormOf.at(site) for site in result.done}
        make_progressive(module, norms, residual=True)
    return module
