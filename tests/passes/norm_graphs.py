"""Random ONNX graphs of residual streams with LayerNorms, most of them pre-norm, in float64."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tests.norms.onnx_sheet import FLOAT64, Sheet
from tests.passes.fold_graphs import STEPS, Composer
from tests.passes.fold_sketch import EPSILON, Case, Tensor

LAYER_NORMS = (*["last"] * 6, "spelled", "axis_1", "plain", "two_axes")


class StreamComposer(Composer):
    """The operators of the fold's graphs, with LayerNorms in place of BatchNorms."""

    def __init__(self, draw: st.DrawFn) -> None:
        super().__init__(draw)
        self.sheet = Sheet(23)

    def norm(self, x: Tensor) -> Tensor:
        how = self.pick(*LAYER_NORMS)
        self.norms.append(how)
        if how == "spelled":
            return self.spelled_layer_norm(x)
        if how == "axis_1" and x.rank > 2:  # channels first, as ConvNeXt has them
            perm = [0, *range(2, x.rank), 1]
            back = [perm.index(i) for i in range(x.rank)]
            return self.transpose(self.layer_norm(self.transpose(x, perm)), back)
        if how == "two_axes" and x.rank > 2:
            return self.layer_norm(x, axes=2)
        return self.layer_norm(x, plain=how == "plain")

    def layer_norm(self, x: Tensor, axes: int = 1, plain: bool = False) -> Tensor:
        shape = x.sizes[-axes:]
        affine = [self.sheet.constant(np.ones(shape), FLOAT64)]
        if not plain:
            affine = [self.constant(*shape) for _ in range(self.pick(1, 2, 2))]
        return self.op("LayerNormalization", x, *affine, axis=-axes, epsilon=EPSILON)

    def spelled_layer_norm(self, x: Tensor) -> Tensor:
        mean = self.sheet.over("ReduceMean", x.name, [x.rank - 1])
        centred = self.sheet.op("Sub", x.name, mean)
        square = self.sheet.op("Mul", centred, centred)
        variance = self.sheet.over("ReduceMean", square, [x.rank - 1])
        inside = self.sheet.op("Add", variance, self.sheet.constant(EPSILON, FLOAT64))
        normal = self.sheet.op("Div", centred, self.sheet.op("Sqrt", inside))
        self.read.add(x.name)
        scaled = self.sheet.op("Mul", normal, self.constant(x.sizes[-1]))
        return Tensor(self.sheet.op("Add", scaled, self.constant(x.sizes[-1])), x.sizes)

    def pre_norm_block(self, x: Tensor) -> Tensor:
        """x + s * f(norm(x)), the norm read once or twice."""
        h = self.norm(x)
        if x.rank == 3 and self.chance(3):
            y = self.attention(h)
            y = self.linear(y, to=x.sizes[-1]) if y.sizes[-1] != x.sizes[-1] else y
        else:
            y = self.activation(self.linear(h))
            if self.chance(3):
                gate = self.linear(h, to=y.sizes[-1])
                y = self.op("Mul", y, gate.name)
            y = self.linear(y, to=x.sizes[-1])
        if self.chance(3):  # LayerScale
            y = self.op("Mul", y, self.constant(x.sizes[-1]))
        return self.op("Add", x, y.name) if self.chance(2) else self.op("Add", y, x.name)

    def stream(self) -> Tensor:
        """Where a stream comes from: patches or words, positions, a class token, a norm."""
        x = self.begin()
        x = x if self.chance(4) else self.linear(x)
        if x.rank == 3 and self.chance(2):
            x = self.class_token(x)
        if self.chance(2):
            x = self.op("Add", x, self.constant(*x.sizes[1:]))
        return self.norm(x) if self.chance(4) else x


_RANDOM = [name for name, ranks in STEPS if 3 in ranks]


@st.composite
def stream_graphs(draw: st.DrawFn) -> Case:
    """One stream with blocks, now and then something else that reads or writes it, and a head."""
    composer = StreamComposer(draw)
    x = composer.stream()
    composer.live.append(x)
    for _ in range(draw(st.integers(1, 3))):
        x = composer.pre_norm_block(composer.live[-1])
        composer.live.append(x)
        if x.rank == 3 and composer.chance(8):
            found = getattr(composer, composer.pick(*_RANDOM))(x)
            composer.live += found if isinstance(found, list) else [found]
    for x in [t for t in composer.live if t.name not in composer.read]:
        x = composer.viewed(x) if composer.chance(3) else x
        composer.live.append(composer.linear(composer.norm(x)))
    return composer.end()
