"""How far a student is from its teacher, as differentiable numbers."""

from __future__ import annotations

import torch
from torch.nn import functional

TEMPERATURE = 0.07
"""Of similarities: what CLIP's training starts with (Radford et al., 2021)."""


def relative_error(ours: torch.Tensor, theirs: torch.Tensor, variance: float) -> torch.Tensor:
    """mean((theirs - ours)^2) / variance; the variance of the teacher's value over the data."""
    return (theirs.float() - ours.float()).square().mean() / max(variance, 1e-12)


def score_divergence(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of class scores [N, C], mean over rows (Hinton et al., 2015, at
    temperature 1)."""
    target = functional.log_softmax(ours.float(), -1)
    return functional.kl_div(
        functional.log_softmax(theirs.float(), -1), target, reduction="batchmean", log_target=True
    )


def cosine_distance(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """1 - cosine, mean over the rows of [N, D]."""
    return 1 - functional.cosine_similarity(ours.float(), theirs.float(), dim=-1).mean()


def similarity_divergence(
    ours: torch.Tensor, theirs: torch.Tensor, keys: torch.Tensor
) -> torch.Tensor:
    """KL of how embeddings [N, D] spread over ``keys`` [K, D], the teacher's for the whole batch:
    softmax of cosines over the temperature. A contrastive loss whose targets are the teacher's
    similarities, so that no pairs are needed.
    """
    keys = functional.normalize(keys.float(), dim=-1)
    scores = [
        functional.normalize(x.float(), dim=-1) @ keys.T / TEMPERATURE for x in (ours, theirs)
    ]
    return score_divergence(*scores)
