# ruff: noqa: N803  (Triton's constants are written in capitals)
# mypy: ignore-errors
# Triton reads the annotations of its functions, so they cannot be mypy's.
"""LayerNorm and RMSNorm in Triton, with or without the addition before them.

Importing this needs Triton. ``triton_launch`` chooses the sizes.
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
