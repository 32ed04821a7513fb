"""The pen that random graphs are written with: values with their sizes, constants, BatchNorms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from tests.norms.onnx_sheet import FLOAT64, INT64, Sheet

NORMS = ("last", "last", "last", "axis_1", "axis_1", "spelled", "rep", "rep", "training")
EPSILON = 2.0**-7  # the same number in float32, which is what the attribute holds
VOCABULARY = 4
DOUBLE = onnx.TensorProto.DOUBLE


@dataclass(frozen=True)
class Case:
    """A graph, and how its BatchNorms were written, in order."""

    proto: onnx.ModelProto
    norms: tuple[str, ...]

    @property
    def operators(self) -> Counter[str]:
        return Counter(node.op_type for node in self.proto.graph.node)

    def __repr__(self) -> str:
        return f"{self.norms}\n{onnx.printer.to_text(self.proto)}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # hypothesis prints failures by it
        printer.text(repr(self))

    def feeds(self, batch: int = 3) -> dict[str, np.ndarray]:
        random = np.random.default_rng(1)
        feeds: dict[str, np.ndarray] = {}
        for value in self.proto.graph.input:
            dims = value.type.tensor_type.shape.dim
            sizes = [batch if d.dim_param else d.dim_value for d in dims]
            feeds[value.name] = random.standard_normal(sizes)
            if value.name == "eos":  # (row, token) pairs
                tokens = random.integers(0, 2, sizes[0])
                feeds["eos"] = np.stack([np.arange(sizes[0]), tokens], 1)
            elif value.type.tensor_type.elem_type != DOUBLE:
                feeds[value.name] = random.integers(0, VOCABULARY, sizes)
        return feeds


@dataclass(frozen=True)
class Tensor:
    """``sizes``: the first one is a multiple of the batch, that of the example is not in it."""

    name: str
    sizes: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.sizes)


class Sketch:
    """Values, constants and BatchNorms; ``draw`` decides everything."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.sheet = Sheet(self.pick(14, 18))
        self.random = np.random.default_rng(0)
        self.batch: int | str = self.pick(2, "B")
        self.width = self.pick(4, 4, 6)
        self.count = self.pick(4, 4, 3)  # of tokens: as many as channels more often than not
        self.stored: dict[tuple[str, tuple[int, ...]], list[str]] = {}
        self.live: list[Tensor] = []
        self.read: set[str] = set()
        self.norms: list[str] = []

    # -- small change ----------------------------------------------------------------------------

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def chance(self, of: int) -> bool:
        return self.draw(st.integers(0, of - 1)) == of - 1

    def constant(self, *shape: int, kind: str = "weight") -> str:
        """A random constant: now and then one that something else reads too."""
        known = self.stored.setdefault((kind, shape), [])
        if known and self.chance(4):
            return self.pick(*known)
        array = self.random.uniform(0.5, 1.5, shape)
        if kind != "variance":
            array *= self.random.choice([-1, 1], shape)
        if len(shape) > 1:
            array /= math.sqrt(math.prod(shape[1:]))
        known.append(self.sheet.constant(array, FLOAT64))
        return known[-1]

    def op(
        self, kind: str, x: Tensor, *more: str, sizes: Sequence[int] | None = None, **a: Any
    ) -> Tensor:
        """A node that reads ``x`` first; its first output, of the sizes of ``x`` if not told."""
        self.read |= {x.name, *more}
        return Tensor(self.sheet.op(kind, x.name, *more, **a), tuple(sizes or x.sizes))

    def ints(self, *numbers: int) -> str:
        return self.sheet.constant(list(numbers), INT64)

    def axis(self, x: Tensor) -> int:
        return self.draw(st.integers(1, x.rank - 1))

    def transpose(self, x: Tensor, perm: Sequence[int]) -> Tensor:
        return self.op("Transpose", x, sizes=[x.sizes[i] for i in perm], perm=list(perm))

    # -- norms -------------------------------------------------------------------------------------

    def norm(self, x: Tensor) -> Tensor:
        how = self.pick(*NORMS)
        self.norms.append(how)
        if how == "spelled":
            return self.spelled(x)
        to_front = [0, x.rank - 1, *range(1, x.rank - 1)]
        back = [to_front.index(i) for i in range(x.rank)]
        moves = x.rank > 2 and how != "axis_1" and not (how != "last" and self.chance(3))
        h = self.transpose(x, to_front) if moves else x
        y = self.batch_norm(h, training=how == "training")
        if how == "rep":
            y = self.op("Add", y, self.op("Mul", h, self.constant(1)).name)
        return self.transpose(y, back) if moves else y

    def batch_norm(self, x: Tensor, training: bool = False) -> Tensor:
        channels = x.sizes[1]
        affine = [self.constant(channels), self.constant(channels)]
        if self.chance(4):
            fixed = [np.ones(channels), np.zeros(channels)]
            affine = [self.sheet.constant(a, FLOAT64) for a in fixed]
        elif self.chance(8):  # a channel that is switched off cannot be divided by
            affine[0] = self.sheet.constant([0.0, *[1.5] * (channels - 1)], FLOAT64)
        statistics = [self.constant(channels), self.constant(channels, kind="variance")]
        extra = {"training_mode": 1, "outputs": 3} if training else {}
        return self.op("BatchNormalization", x, *affine, *statistics, epsilon=EPSILON, **extra)

    def spelled(self, x: Tensor) -> Tensor:
        """(x - mean) / sqrt(var + eps) * gamma + beta along any axis"""
        axis = self.axis(x)
        shape = (x.sizes[axis], *[1] * (x.rank - 1 - axis))
        epsilon = self.sheet.constant(EPSILON, FLOAT64)
        variance = self.constant(*shape, kind="variance")
        root = self.sheet.op("Sqrt", self.sheet.op("Add", variance, epsilon))
        y = self.op("Div", self.op("Sub", x, self.constant(*shape)), root)
        return self.op("Add", self.op("Mul", y, self.constant(*shape)), self.constant(*shape))
