# ruff: noqa: N803  (Triton's constants are written in capitals)
# mypy: ignore-errors
# Triton reads the annotations of its functions, so they cannot be mypy's.
"""The gradients of LayerNorm and RMSNorm in Triton: those of ``eager.layer_norm_backward``.

Each program adds up the gradients of weight and bias over its own rows, in float32, and writes them
as one row of ``partial``; the caller adds these. Nothing is atomic, so results repeat. Statistics
are taken again: the row is at hand.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def backward(
    grad,
    grad_sum,
    x,
    grad_x,
    weight,
    partial_weight,
    partial_bias,
    rows,
    columns,
    each,
    eps,
    CENTRED: tl.constexpr,
    WEIGHT: tl.constexpr,
    SUM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``each`` rows a program, ROWS at once, whole rows in registers."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)[None, :]
    here = column < columns
    of_weight = tl.zeros([ROWS, COLUMNS], tl.float32)
    of_bias = tl.zeros([ROWS, COLUMNS], tl.float32)
    if WEIGHT:
        w = tl.load(weight + column, mask=here, other=0.0).to(tl.float32)
    for start in range(0, each, ROWS):
        offset = (start + tl.arange(0, ROWS))[:, None]
        row = program * each + offset
        inside = (offset < each) & (row < rows) & here
        at = row * columns + column
        h = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if CENTRED:
            h = tl.where(inside, h - tl.sum(h, 1, keep_dims=True) / columns, 0.0)
            h = tl.where(inside, h - tl.sum(h, 1, keep_dims=True) / columns, 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(h * h, 1, keep_dims=True) / columns + eps)
        h *= rstd
        of_weight += g * h
        if CENTRED:
            of_bias += g
        if WEIGHT:
            g *= w
        d = g - h * (tl.sum(g * h, 1, keep_dims=True) / columns)
        if CENTRED:
            d -= tl.sum(g, 1, keep_dims=True) / columns
        d *= rstd
        if SUM:
            d += tl.load(grad_sum + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_x + at, d.to(grad_x.dtype.element_ty), mask=inside)
    to = program * columns + column
    tl.store(partial_weight + to, tl.sum(of_weight, 0, keep_dims=True), mask=here)
    if CENTRED:
        tl.store(partial_bias + to, tl.sum(of_bias, 0, keep_dims=True), mask=here)


@triton.jit
def backward_long(
    grad,
    grad_sum,
    x,
    grad_x,
    weight,
    partial_weight,
    partial_bias,
    rows,
    columns,
    each,
    eps,
    CENTRED: tl.constexpr,
    WEIGHT: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``each`` rows a program, one at a time and in blocks; ``partial`` starts as zeros."""
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    last = tl.minimum(rows, (program + 1) * each)
    for row in range(program * each, last):
        first = row * columns
        sums = tl.zeros([BLOCK], tl.float32)
        if CENTRED:
            for start in range(0, columns, BLOCK):
                here = start + lane < columns
                at = first + start + lane
                sums += tl.load(x + at, mask=here, other=0.0).to(tl.float32)
        mean = tl.sum(sums, 0) / columns
        rest = tl.zeros([BLOCK], tl.float32)
        squares = tl.zeros([BLOCK], tl.float32)
        of_g = tl.zeros([BLOCK], tl.float32)
        of_gh = tl.zeros([BLOCK], tl.float32)
        for start in range(0, columns, BLOCK):
            here = start + lane < columns
            at = first + start + lane
            h = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
            h = tl.where(here, h - mean, 0.0)
            g = tl.load(grad + at, mask=here, other=0.0).to(tl.float32)
            if WEIGHT:
                g *= tl.load(weight + start + lane, mask=here, other=0.0).to(tl.float32)
            rest += h
            squares += h * h
            of_g += g
            of_gh += g * h
        left = tl.sum(rest, 0) / columns if CENTRED else 0.0
        rstd = 1.0 / tl.sqrt(tl.sum(squares, 0) / columns - left * left + eps)
        mean_g = tl.sum(of_g, 0) / columns
        mean_gh = (tl.sum(of_gh, 0) / columns - left * mean_g) * rstd
        for start in range(0, columns, BLOCK):
            here = start + lane < columns
            at = first + start + lane
            h = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
            h = tl.where(here, ((h - mean) - left) * rstd, 0.0)
            g = tl.load(grad + at, mask=here, other=0.0).to(tl.float32)
            to = program * columns + start + lane
            old = tl.load(partial_weight + to, mask=here, other=0.0)
            tl.store(partial_weight + to, old + g * h, mask=here)
            if CENTRED:
                old = tl.load(partial_bias + to, mask=here, other=0.0)
                tl.store(partial_bias + to, old + g, mask=here)
            if WEIGHT:
                g *= tl.load(weight + start + lane, mask=here, other=0.0).to(tl.float32)
            d = g - h * mean_gh
            if CENTRED:
                d -= mean_g
            d *= rstd
            if SUM:
                d += tl.load(grad_sum + at, mask=here, other=0.0).to(tl.float32)
            tl.store(grad_x + at, d.to(grad_x.dtype.element_ty), mask=here)
