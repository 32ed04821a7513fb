"""Operators that move, copy, pick or average values, for random graphs."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from tests.norms.onnx_sheet import INT64
from tests.passes.fold_sketch import DOUBLE, Sketch, Tensor


class Views(Sketch):
    """Each takes a value and appends one operator that has no weights, sometimes two."""

    def permute(self, x: Tensor) -> Tensor:
        return self.transpose(x, (0, *self.draw(st.permutations(range(1, x.rank)))))

    def reshape(self, x: Tensor) -> Tensor:
        lead, inner = x.sizes[0], x.sizes[1:]
        options = [(lead, math.prod(inner)), (lead, *inner[::-1])]
        if x.rank > 2:
            options += [(lead * math.prod(inner[:-1]), inner[-1])]
            options += [(lead, inner[0], math.prod(inner[1:]))] * 2
        if inner[-1] % 2 == 0 and x.rank < 4:
            options += [(lead, *inner[:-1], 2, inner[-1] // 2)]
        if inner[0] % 2 == 0 and x.rank < 4:
            options += [(lead, 2, inner[0] // 2, *inner[1:])]
        if x.rank == 2 and lead > 1:
            options += [(1, lead, *inner)] * 3
        sizes = self.pick(*options)
        if sizes == (lead, math.prod(inner)) and self.chance(2):
            return self.op("Flatten", x, sizes=sizes, axis=1)
        first = 0 if sizes[0] == lead else -1
        return self.op("Reshape", x, self.ints(first, *sizes[1:]), sizes=sizes)

    def gather(self, x: Tensor) -> Tensor:
        """The class token, or elements of any axis."""
        axis = self.axis(x)
        if x.sizes[axis] < 2:
            return self.slice(x)
        indices = self.pick([0, -1], [1, 1], [0] * x.sizes[axis], *[0, 0] * (x.rank > 2))
        kept = np.shape(indices)
        sizes = [*x.sizes[:axis], *kept, *x.sizes[axis + 1 :]]
        return self.op("Gather", x, self.sheet.constant(indices, INT64), sizes=sizes, axis=axis)

    def slice(self, x: Tensor) -> Tensor:
        axis = self.axis(x)
        size = x.sizes[axis]
        some = [(0, 1, 1), (0, size, 1), (-1, size, 1), (0, size, 2), (-1, -size - 1, -1)]
        start, end, step = self.pick(some[0], *some)
        count = len(range(size)[start:end:step])
        sizes = [*x.sizes[:axis], count, *x.sizes[axis + 1 :]]
        numbers = [self.ints(n) for n in (start, end, axis, step)]
        y = self.op("Slice", x, *numbers, sizes=sizes)
        if count > 1 or x.rank == 2:
            return y
        sizes = [*x.sizes[:axis], *x.sizes[axis + 1 :]]
        return self.op("Squeeze", y, self.ints(axis), sizes=sizes)

    def end_of_text(self, x: Tensor) -> Tensor:
        if x.sizes[0] != 1 or x.sizes[1] < 2:
            return self.mean(x)
        if "eos" not in self.sheet.dtypes:
            self.sheet.input("eos", [self.batch, 2], INT64)
        return self.op("GatherND", x, "eos", sizes=(1, *x.sizes[2:]))

    def split(self, x: Tensor) -> list[Tensor] | Tensor:
        axis = self.axis(x)
        if x.sizes[axis] % 2:
            return self.slice(x)
        half = x.sizes[axis] // 2
        sizes = (*x.sizes[:axis], half, *x.sizes[axis + 1 :])
        first = self.op("Split", x, self.ints(half, half), sizes=sizes, axis=axis, outputs=2)
        return [Tensor(f"{first.name}_1", sizes), first]

    def mean(self, x: Tensor) -> Tensor:
        axes = [self.axis(x)] if x.rank < 4 else self.pick([2, 3], [1, 2], [1], [3])
        keep = int(x.rank - len(axes) < 2 or self.chance(3))
        kept = [1 if i in axes else n for i, n in enumerate(x.sizes) if keep or i not in axes]
        self.read.add(x.name)
        kind = self.pick("ReduceMean", "ReduceMean", "ReduceSum")
        return Tensor(self.sheet.over(kind, x.name, axes, keepdims=keep), tuple(kept))

    def pool(self, x: Tensor) -> Tensor:
        """An average of neighbours along the axes behind the first two, or of all of them."""
        spatial = x.sizes[2:]
        if self.chance(2):
            return self.op("GlobalAveragePool", x, sizes=(*x.sizes[:2], *[1] * len(spatial)))
        pad, kernel = self.pick(0, 0, 1), [self.pick(min(2, n), n) for n in spatial]
        pad = min(pad, *(k - 1 for k in kernel))
        out = [n + 2 * pad - k + 1 for n, k in zip(spatial, kernel, strict=True)]
        return self.op("AveragePool", x, sizes=(*x.sizes[:2], *out), kernel_shape=kernel,
                       pads=[pad] * 2 * len(out), count_include_pad=self.pick(0, 1))  # fmt: skip

    def pad(self, x: Tensor) -> Tensor:
        """Zeros behind the last elements of an axis, or none at all."""
        axis, count = self.axis(x), self.pick(0, 1)
        sizes = [n + count * (i == axis) for i, n in enumerate(x.sizes)]
        ends = [count * (i == axis) for i in range(x.rank)]
        return self.op("Pad", x, self.ints(*[0] * x.rank, *ends), sizes=sizes)

    def expand(self, x: Tensor) -> Tensor:
        """The same for more tokens."""
        y = self.op("Unsqueeze", x, self.ints(1), sizes=(x.sizes[0], 1, *x.sizes[1:]))
        sizes = (x.sizes[0], self.count, *x.sizes[1:])
        shape = self.ints(1, *sizes[1:])
        if self.chance(2):
            return self.op("Tile", y, self.ints(1, self.count, *[1] * (x.rank - 1)), sizes=sizes)
        return self.op("Expand", y, shape, sizes=sizes)

    def half(self, x: Tensor) -> Tensor:
        """The second part of a Split, whose first part goes elsewhere."""
        parts = self.split(x)
        if isinstance(parts, Tensor):
            return parts
        self.live.append(parts[1])
        self.read.add(parts[0].name)
        return parts[0]

    def halves(self, x: Tensor) -> Tensor:
        """The sum of the two parts of a Split."""
        parts = self.split(x)
        return parts if isinstance(parts, Tensor) else self.op("Add", parts[1], parts[0].name)

    def symmetric(self, x: Tensor) -> Tensor:
        """x plus what a permutation makes of it."""
        y = self.permute(x)
        return self.op("Add", x, y.name) if y.sizes == x.sizes else y

    def multiple(self, x: Tensor) -> Tensor:
        """A multiple of x, or its distance from a constant."""
        kind = self.pick("Mul", "Div", "Neg", "Sub")
        if kind == "Neg":
            return self.op(kind, x)
        other = self.constant(*self.pick((1,), x.sizes[1:])) if kind == "Sub" else self.constant(1)
        if kind == "Sub" and self.chance(2):
            self.read.add(x.name)
            return Tensor(self.sheet.op(kind, other, x.name), x.sizes)
        return self.op(kind, x, other)

    def same(self, x: Tensor) -> Tensor:
        kind = self.pick("Identity", "Cast", "Dropout")
        return self.op(kind, x, **({"to": DOUBLE} if kind == "Cast" else {}))
