# ruff: noqa: N803  (Triton's constants are written in capitals)
# mypy: ignore-errors
# Triton reads the annotations of its functions, so they cannot be mypy's.
"""LayerNorm and RMSNorm in Triton, with or without the addition before them, and their gradients.

Importing this needs Triton. ``triton_launch`` chooses the sizes.

Each program of a backward kernel adds up the gradients of weight and bias over its own rows, in
float32, and writes them as one row of ``partial``; the caller adds these. Nothing is atomic, so
results repeat. Statistics are taken again: the row is at hand.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(
    branch,
    residual,
    normalised,
    total,
    weight,
    bias,
    scale,
    rows,
    columns,
    eps,
    ADD: tl.constexpr,
    CENTRED: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """ROWS whole rows a program, in registers: read once, written once."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    here = column < columns
    inside = (row < rows) & here
    at = row * columns + column
    x = tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        if SCALE:
            x *= tl.load(scale + column, mask=here, other=0.0).to(tl.float32)
        x += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + at, x.to(total.dtype.element_ty), mask=inside)
    if CENTRED:
        # Twice: float32 cannot hold the mean of a row of large ones.
        x = tl.where(inside, x - tl.sum(x, 1, keep_dims=True) / columns, 0.0)
        x = tl.where(inside, x - tl.sum(x, 1, keep_dims=True) / columns, 0.0)
    y = x / tl.sqrt(tl.sum(x * x, 1, keep_dims=True) / columns + eps)
    if WEIGHT:
        y *= tl.load(weight + column, mask=here, other=0.0).to(tl.float32)
    if BIAS:
        y += tl.load(bias + column, mask=here, other=0.0).to(tl.float32)
    tl.store(normalised + at, y.to(normalised.dtype.element_ty), mask=inside)


@triton.jit
def forward_long(
    branch,
    residual,
    normalised,
    total,
    weight,
    bias,
    scale,
    rows,
    columns,
    eps,
    ADD: tl.constexpr,
    CENTRED: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row a program, too long for the registers: a block at a time, three times.

    Here the norm is that of the sum as it was rounded: in place nothing else is left of it.
    """
    first = tl.program_id(0).to(tl.int64) * columns
    lane = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + lane
        here = column < columns
        x = tl.load(branch + first + column, mask=here, other=0.0).to(tl.float32)
        if ADD:
            if SCALE:
                x *= tl.load(scale + column, mask=here, other=0.0).to(tl.float32)
            x += tl.load(residual + first + column, mask=here, other=0.0).to(tl.float32)
            rounded = x.to(total.dtype.element_ty)
            tl.store(total + first + column, rounded, mask=here)
            x = rounded.to(tl.float32)
        sums += x
    tl.debug_barrier()  # what one thread of the program stored, another may load
    source = total if ADD else branch
    mean = tl.sum(sums, 0) / columns if CENTRED else 0.0
    rest = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + lane
        here = column < columns
        x = tl.load(source + first + column, mask=here, other=0.0).to(tl.float32)
        x = tl.where(here, x - mean, 0.0)
        rest += x
        squares += x * x
    left = tl.sum(rest, 0) / columns if CENTRED else 0.0
    rstd = 1.0 / tl.sqrt(tl.sum(squares, 0) / columns - left * left + eps)
    for start in range(0, columns, BLOCK):
        column = start + lane
        here = column < columns
        x = tl.load(source + first + column, mask=here, other=0.0).to(tl.float32)
        y = ((x - mean) - left) * rstd
        if WEIGHT:
            y *= tl.load(weight + column, mask=here, other=0.0).to(tl.float32)
        if BIAS:
            y += tl.load(bias + column, mask=here, other=0.0).to(tl.float32)
        tl.store(normalised + first + column, y.to(normalised.dtype.element_ty), mask=here)


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
