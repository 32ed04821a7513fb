"""Scales and shifts per channel and group of tokens that replace a norm, and BatchNorms of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from normswap.fit.moments import GroupMoments, varies
from normswap.graph.graph import Array
from normswap.norms.site import Site

_RELATIVE_EPSILON = 1e-6  # of the mean variance, so that a channel without variance stays finite
_STRENGTHS = (0.0, *(10.0**power for power in range(-4, 3)))  # of the channel's mean variance


@dataclass(frozen=True)
class ChannelFit:
    """y = scale * x + shift; both [G, C] in float64, a row for each group of tokens."""

    scale: Array
    shift: Array


Fitting = Callable[[Site, GroupMoments, GroupMoments], ChannelFit]
"""Takes a site, and the moments of its input x (in the swapped model) and of the original's output
y over the rows to fit and over the rows held out."""


def copied(site: Site, train: GroupMoments, held_out: GroupMoments) -> ChannelFit:
    """The norm's own gamma and beta with the statistics of its input.

    For a LayerNorm y = gamma (x - mean) / sqrt(var + eps) + beta; an RMSNorm subtracts no mean and
    divides by sqrt(var + mean^2 + eps).
    """
    x = train.merged(held_out)
    size = x.x_mean.shape[1]
    gamma = np.ones(size) if site.weight is None else site.weight
    beta = np.zeros(size) if site.bias is None else site.bias
    centred = site.kind == "layer_norm"
    power = x.x_variance if centred else x.x_variance + np.square(x.x_mean)
    scale = gamma / np.sqrt(power + safe_epsilon(site.epsilon, power))
    return _where_seen(x, scale, beta - scale * x.x_mean if centred else beta + 0 * scale)


def matched_moments(site: Site, train: GroupMoments, held_out: GroupMoments) -> ChannelFit:
    """Mean and variance of the output equal the original norm's, per channel and group.

    The sign is that of the norm's gamma, because moments do not determine it.
    """
    both = train.merged(held_out)
    sign = np.ones(both.x_mean.shape[1]) if site.weight is None else np.sign(site.weight)
    alive = varies(both.x_variance, both.x_mean)
    ratio = np.sqrt(both.y_variance / np.where(alive, both.x_variance, 1.0))
    scale = np.where(alive, np.where(sign < 0, -1.0, 1.0) * ratio, 0.0)
    return _where_seen(both, scale, both.y_mean - scale * both.x_mean)


def least_squares(site: Site, train: GroupMoments, held_out: GroupMoments) -> ChannelFit:
    """Minimises (y - scale x - shift)^2 per channel and group.

    Each group's slope shrinks towards that of all groups together, by the strength (a share of the
    channel's mean variance) that has the least error on the rows held out.
    """
    errors = [_squared_error(held_out, _slopes(train, s)) for s in _STRENGTHS]
    both = train.merged(held_out)
    return _slopes(both, _STRENGTHS[int(np.argmin(errors))])


FITS: dict[str, Fitting] = {
    "copy": copied,
    "moments": matched_moments,
    "least-squares": least_squares,
}


def _slopes(moments: GroupMoments, strength: float) -> ChannelFit:
    weights = moments.count[:, None] / max(moments.count.sum(), 1)
    alive = varies(moments.x_variance, moments.x_mean)
    own, together = (np.where(alive, a, 0.0) for a in (moments.x_variance, moments.covariance))
    variance = (weights * own).sum(0)
    common = _ratio((weights * together).sum(0), variance)
    pull = strength * variance
    scale = _ratio(together + pull * common, own + pull)
    return _where_seen(moments, scale, moments.y_mean - scale * moments.x_mean)


def _ratio(above: Array, below: Array) -> Array:
    """Zero where a channel has no variance."""
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), 0.0)


def share_left(moments: GroupMoments, fit: ChannelFit) -> float:
    """The share of the variance of y, within groups, that ``fit`` leaves."""
    variance = float((moments.count[:, None] * moments.y_variance).sum())
    return _squared_error(moments, fit) / variance if variance > 0 else 0.0


def _squared_error(moments: GroupMoments, fit: ChannelFit) -> float:
    offset = moments.y_mean - fit.scale * moments.x_mean - fit.shift
    spread = moments.y_variance - 2 * fit.scale * moments.covariance
    spread = spread + np.square(fit.scale) * moments.x_variance + np.square(offset)
    return float((moments.count[:, None] * spread).sum())


def _where_seen(moments: GroupMoments, scale: Array, shift: Array) -> ChannelFit:
    """The fit; a group without rows gets the mean scale and shift of the others."""
    seen = moments.count > 0
    if not seen.all():
        share = moments.count / max(moments.count.sum(), 1)
        scale = np.where(seen[:, None], scale, share @ np.where(seen[:, None], scale, 0))
        shift = np.where(seen[:, None], shift, share @ np.where(seen[:, None], shift, 0))
    return ChannelFit(scale, shift)


@dataclass(frozen=True)
class BatchNormConstants:
    """y = weight * (x - mean) / sqrt(variance + epsilon) + bias; arrays [C] in float64."""

    weight: Array
    bias: Array
    mean: Array
    variance: Array
    epsilon: float


def with_statistics(
    scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float
) -> BatchNormConstants:
    """The BatchNorm that computes ``scale * x + shift`` with the statistics of its input."""
    weight = scale * np.sqrt(variance + epsilon)
    return BatchNormConstants(weight, scale * mean + shift, mean, variance, epsilon)


def identity(mean: Array, variance: Array, epsilon: float) -> BatchNormConstants:
    """The BatchNorm that changes nothing in evaluation mode: it undoes its own statistics."""
    return with_statistics(np.ones_like(mean), np.zeros_like(mean), mean, variance, epsilon)


def safe_epsilon(epsilon: float, variance: Array) -> float:
    """``epsilon``, or a larger one for channels without variance; six digits, as files have."""
    return float(f"{max(epsilon, _RELATIVE_EPSILON * float(variance.mean())):.6g}")
