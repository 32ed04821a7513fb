"""Random ONNX graphs of what the fold algebra knows and of what it has to refuse.

All floats are float64, so that a fold that rounds its weights once is exact to float64.
"""

from __future__ import annotations

import math

from hypothesis import strategies as st

from tests.norms.onnx_sheet import FLOAT64, INT64
from tests.passes.fold_sketch import VOCABULARY, Case, Tensor
from tests.passes.fold_views import Views

__all__ = ["Case", "fold_graphs"]


class Composer(Views):
    """Appends random operators, each to a value that is there."""

    # -- where a graph begins and ends -----------------------------------------------------------

    def begin(self) -> Tensor:
        kind = self.pick("tokens", "tokens", "image", "ids", "rows")
        if kind == "ids":
            name = self.sheet.input("ids", [self.batch, self.count], INT64)
            table = self.constant(VOCABULARY, self.width)
            x = Tensor(self.sheet.op("Gather", table, name), (1, self.count, self.width))
            return self.affine(x)
        inner = {"tokens": (self.count, self.width), "image": (self.pick(3, 4), 4, 4)}
        sizes = inner.get(kind, (self.width,))
        x = Tensor(self.sheet.input("x", [self.batch, *sizes], FLOAT64), (1, *sizes))
        if kind == "image" and self.chance(2):  # patches to tokens
            x = self.conv(x)
            x = self.op("Reshape", x, self.ints(0, x.sizes[1], -1),
                        sizes=(1, x.sizes[1], math.prod(x.sizes[2:])))  # fmt: skip
            return self.transpose(x, (0, 2, 1))
        return self.pick(self.weight, self.weight, self.activation, self.same)(x)

    def end(self) -> Case:
        for x in [t for t in self.live if t.name not in self.read]:
            for _ in range(self.pick(0, 1, 1)):
                x = self.pick(self.linear, self.linear, self.activation)(x)
            self.sheet.output(x.name, x.rank)
            self.read.add(x.name)
        if self.chance(10):
            named = {o.name for o in self.sheet.model().graph.output}
            inner = [t for t in self.live if t.name not in named and "_" in t.name]
            if inner:
                x = self.pick(*inner)
                self.sheet.output(x.name, x.rank)
        return Case(self.sheet.model(), tuple(self.norms))

    def step(self) -> None:
        x = self.live[-1] if not self.chance(8) else self.pick(*self.live)
        options = [name for name, ranks in STEPS if x.rank in ranks]
        result = getattr(self, self.pick(*options))(x)
        self.live += result if isinstance(result, list) else [result]

    # -- operators -------------------------------------------------------------------------------

    def linear(self, x: Tensor, to: int = 0) -> Tensor:
        size, to = x.sizes[-1], to or self.pick(4, self.width)
        sizes = (*x.sizes[:-1], to)
        if x.rank == 2 and self.chance(2):
            flags = {"transB": self.pick(0, 1), "alpha": self.pick(1.0, 0.5)}
            flags |= {"beta": self.pick(1.0, 2.0), "transA": int(self.chance(4))}
            if flags["transA"]:
                x = self.op("Transpose", x, sizes=x.sizes[::-1], perm=[1, 0])
            weight = self.constant(to, size) if flags["transB"] else self.constant(size, to)
            biases = [self.constant(*self.pick((to,), (1, to), (1,)))] * self.pick(0, 1, 1)
            return self.op("Gemm", x, weight, *biases, sizes=sizes, **flags)
        if self.chance(3):
            weight = self.sheet.op("Transpose", self.constant(to, size), perm=[1, 0])
        else:
            weight = self.constant(size, to)
        y = self.op("MatMul", x, weight, sizes=sizes)
        return y if self.chance(3) else self.op("Add", y, self.constant(to))

    def conv(self, x: Tensor) -> Tensor:
        inside, to = x.sizes[1], self.pick(4, self.width)
        group = self.pick(1, 1, *[g for g in (2, inside) if not inside % g and not to % g])
        kernel = [self.pick(1, min(2, n)) for n in x.sizes[2:]]
        pad, stride = int(self.chance(3)), int(self.pick(1, 1, 2))
        out = [(n + 2 * pad - k) // stride + 1 for n, k in zip(x.sizes[2:], kernel, strict=True)]
        weight = self.constant(to, inside // group, *kernel)
        biases = [self.constant(to)] * self.pick(0, 1)
        return self.op("Conv", x, weight, *biases, sizes=(x.sizes[0], to, *out), group=group,
                       strides=[stride] * len(out), pads=[pad] * 2 * len(out))  # fmt: skip

    def affine(self, x: Tensor) -> Tensor:
        """LayerScale, positions and other constants: per channel on any axis, and otherwise."""
        axis = self.axis(x)
        shape = self.pick(x.sizes[-1:], (x.sizes[axis], *[1] * (x.rank - 1 - axis)), x.sizes[1:],
                          (1,))  # fmt: skip
        kind, other = self.pick("Mul", "Mul", "Add", "Sub", "Div"), self.constant(*shape)
        if self.chance(3) and kind != "Div":
            self.read.add(x.name)
            return Tensor(self.sheet.op(kind, other, x.name), x.sizes)
        return self.op(kind, x, other)

    def viewed(self, x: Tensor) -> Tensor:
        """Some views of ``x``."""
        for _ in range(self.pick(0, 1, 1, 2)):
            x = getattr(self, self.pick(*[n for n, ranks in VIEWS if x.rank in ranks]))(x)
        return x

    def weight(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.rank > 2 and self.chance(3) else self.linear(x)

    def pre_norm(self, x: Tensor) -> Tensor:
        """A norm, some views, a linear layer or convolution."""
        return self.weight(self.viewed(self.norm(x)))

    def post_linear(self, x: Tensor) -> Tensor:
        """A linear layer or convolution, some views, a norm."""
        return self.norm(self.viewed(self.weight(x)))

    def residual(self, x: Tensor) -> Tensor:
        others = [t for t in self.live if t.sizes == x.sizes and t is not x]
        kind = self.pick("Add", "Add", "Sub")
        return self.op(kind, x, self.pick(*others).name) if others else self.block(x)

    def block(self, x: Tensor) -> Tensor:
        """x + f(x), with a norm before, inside, behind f, or behind the sum."""
        where = self.pick("before", "inside", "behind", "sum", "none")
        h = self.norm(x) if where == "before" else x
        h = self.linear(h)
        h = self.norm(h) if where == "inside" else h
        h = self.linear(self.activation(h), to=x.sizes[-1])
        h = self.norm(h) if where == "behind" else self.affine(h) if self.chance(4) else h
        y = self.op("Add", h, x.name) if self.chance(2) else self.op("Add", x, h.name)
        return self.norm(y) if where == "sum" else y

    def attention(self, x: Tensor) -> Tensor:
        """Packed queries, keys and values, split in one of three ways."""
        size, count = self.width, x.sizes[1]
        packed = self.linear(x, to=3 * size)
        one = (x.sizes[0], count, size)
        how = self.pick("split", "gather", "slice")
        if how == "split":
            q = self.op("Split", packed, self.ints(*[size] * 3), sizes=one, axis=2, outputs=3)
            parts = [q, *(Tensor(f"{q.name}_{i}", one) for i in (1, 2))]
        elif how == "gather":
            wide = self.op("Reshape", packed, self.ints(0, count, 3, size),
                           sizes=(x.sizes[0], count, 3, size))  # fmt: skip
            wide = self.transpose(wide, (2, 0, 1, 3))
            index = [self.sheet.constant(i, INT64) for i in range(3)]
            parts = [self.op("Gather", wide, i, sizes=one, axis=0) for i in index]
        else:
            ends = [(self.ints(size * i), self.ints(size * (i + 1))) for i in range(3)]
            parts = [self.op("Slice", packed, *e, self.ints(2), sizes=one) for e in ends]
        q, k, v = parts
        a = self.op("MatMul", q, self.transpose(k, (0, 2, 1)).name, sizes=(*one[:2], count))
        a = self.op("Softmax", self.op("Mul", a, self.constant(1)), axis=-1)
        return self.linear(self.op("MatMul", a, v.name, sizes=one))

    def class_token(self, x: Tensor) -> Tensor:
        rows = self.sheet.op("Gather", self.sheet.op("Shape", x.name, dtype=INT64), self.ints(0))
        shape = self.sheet.op("Concat", rows, self.ints(1, x.sizes[2]), axis=0)
        token = self.constant(1, 1, x.sizes[2])
        token = self.sheet.op("Expand", token, shape)
        return self.concat(x, Tensor(token, (x.sizes[0], 1, x.sizes[2])), 1)

    def concat(self, x: Tensor, other: Tensor | None = None, axis: int = 0) -> Tensor:
        axis = axis or self.axis(x)
        fits = [t for t in self.live if t.sizes == x.sizes]
        other = other or self.pick(x, *fits)
        sizes = list(x.sizes)
        sizes[axis] += other.sizes[axis]
        if self.chance(2):
            x, other = other, x
        return self.op("Concat", x, other.name, sizes=sizes, axis=axis)

    def activation(self, x: Tensor) -> Tensor:
        kind = self.pick("Relu", "Softmax", "Erf", "Sigmoid")
        return self.op(kind, x, **({"axis": -1} if kind == "Softmax" else {}))


VIEWS: list[tuple[str, tuple[int, ...]]] = [
    *[("permute", (3, 4))] * 2,
    *[("reshape", (2, 3, 4))] * 2,
    ("gather", (2, 3, 4)),
    *[("slice", (2, 3, 4))] * 2,
    ("half", (2, 3, 4)),
    ("halves", (2, 3, 4)),
    ("end_of_text", (3, 4)),
    ("mean", (3, 4)),
    ("pool", (3, 4)),
    ("pad", (2, 3, 4)),
    ("expand", (2, 3)),
    ("multiple", (2, 3, 4)),
    ("symmetric", (3, 4)),
    ("same", (2, 3, 4)),
]
# What a step may be, with the ranks of the values it takes; repeated to be more likely.
STEPS: list[tuple[str, tuple[int, ...]]] = [
    *[("norm", (2, 3, 4))] * 3,
    *[("pre_norm", (2, 3, 4))] * 9,
    *[("post_linear", (2, 3, 4))] * 6,
    *[("block", (2, 3))] * 8,
    *[("weight", (2, 3, 4))] * 3,
    *[("affine", (2, 3, 4))] * 2,
    *[("attention", (3,))] * 2,
    *[("class_token", (3,))] * 3,
    *[("residual", (2, 3, 4))] * 3,
    *[("concat", (2, 3))] * 2,
    ("split", (2, 3, 4)),
    ("activation", (2, 3, 4)),
]
STEPS += VIEWS


@st.composite
def fold_graphs(draw: st.DrawFn) -> Case:
    """A graph of a few steps, with at least one BatchNorm in it."""
    composer = Composer(draw)
    composer.live.append(composer.begin())
    for _ in range(draw(st.integers(1, 6))):
        composer.step()
    if not composer.norms:
        composer.live.append(composer.norm(composer.live[-1]))
    return composer.end()
