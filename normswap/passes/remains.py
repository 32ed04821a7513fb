"""What the swaps beside the dialects leave where a norm was, with made-up constants: for asking
whether a target has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from normswap.errors import NormswapError
from normswap.fit.channelwise import BatchNormConstants
from normswap.fit.log_scale import LogScale
from normswap.graph.graph import Graph, Value
from normswap.norms.site import Site
from normswap.passes.dialect import DialectForms
from normswap.passes.insert import (
    insert_batch_norm,
    insert_centred,
    insert_linear,
    insert_log_scale,
    insert_scale_shift,
)
from normswap.passes.norm_operator import ROW_NORMS


def remains(graph: Graph, site: Site) -> dict[str, list[Callable[[Graph], Value]]]:
    """For each swap, by its word, that there is for a norm: functions that write one of the forms
    that it may leave into a copy of ``graph`` each, and give the new value. They may raise
    NormswapError.

    In the order of how little is lost: ``rmsnorm`` is exact, and leaves an RMSNorm in any dialect;
    ``predicted``, ``affine`` and ``batchnorm`` are fitted to data, and the last two may be folded,
    so that nothing is left.
    """
    if site.kind not in ROW_NORMS or len(site.axes) != 1 or graph.value(site.input).rank is None:
        return {}
    found: dict[str, list[Callable[[Graph], Value]]] = {
        "predicted": [lambda copy: _predicted(copy, site)],
        "affine": [lambda copy: _affine(copy, site)],
        "batchnorm": [lambda copy: _batch_norm(copy, site)],
    }
    if site.kind == "layer_norm":
        found = {"rmsnorm": _rms_norms(graph, site)} | found
    return found


def _rms_norms(graph: Graph, site: Site) -> list[Callable[[Graph], Value]]:
    norm, forms = replace(site, kind="rms_norm", bias=None, spelling="decomposed"), DialectForms()

    def writer(form: str) -> Callable[[Graph], Value]:
        return lambda copy: forms.write(copy, norm, form)[0]

    return [writer(form) for form in forms.candidates(graph, norm)]


def _predicted(graph: Graph, site: Site) -> Value:
    x, (size,), name = graph.value(site.input), site.normalized_shape, site.name
    if site.axes != ((x.rank or 0) - 1,):
        raise NormswapError("it normalises over another axis than the last one")
    ones = np.ones(size)
    scale = LogScale(ones, np.ones((size, 1)), np.ones(1), 0.0, 0.0, -1.0, 1.0)
    rest = insert_centred(graph, x, name, None) if site.kind == "layer_norm" else x
    log_scale = insert_log_scale(graph, x, scale, None, name, None)
    factor = graph.insert("Exp", [log_scale], name=f"{name}.factor")
    rest = graph.insert("Mul", [rest, factor], name=f"{name}.normed")
    return insert_scale_shift(graph, rest, ones, ones, name, None)


def _affine(graph: Graph, site: Site) -> Value:
    x, (size,), (axis,) = graph.value(site.input), site.normalized_shape, site.axes
    return insert_linear(graph, x, axis, np.eye(size), np.ones(size), site.name, None)


def _batch_norm(graph: Graph, site: Site) -> Value:
    x, (size,), (axis,) = graph.value(site.input), site.normalized_shape, site.axes
    ones = np.ones(size)
    constants = BatchNormConstants(ones, ones, ones, ones, 1e-5)
    return insert_batch_norm(graph, x, axis, constants, site.name, None)[0]
