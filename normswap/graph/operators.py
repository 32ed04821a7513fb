"""The table of operators: one row says all that normswap knows of an operator.

Nobody else keeps a set of operator names; what a piece of code has to know is a query of a row:

    >>> operator("Gelu").activation
    'GELU'
    >>> operator("Reshape").passes_through
    True
    >>> norm_operator("layer_norm")
    'LayerNormalization'

To add an operator, add a row. Names are those of ``Node.op``: ONNX's, and an operator's qualified
name where ONNX has none of its kind. A name with ``*`` in it is a pattern, for those without a row
of their own. An operator that no row speaks of has an empty one: nothing is known of it.

How a linear map moves through an operator is in ``passes/algebra/rules.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

Move = Literal[
    "",
    "copy",
    "transpose",
    "reshape",
    "expand",
    "slice",
    "split",
    "concat",
    "pad",
    "gather",
    "roll",
    "tile",
    "resize",
    "other",
]
RUNTIME_DOMAIN = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


@dataclass(frozen=True)
class Operator:
    """What is known of one operator. Fields that are empty say that it is not of that kind.

    Where it is defined:
        name: as ``Node.op`` has it, or a pattern of such names.
        domain: its ONNX domain; ``Node.op`` may have it in front of the name.
        since: the version of its domain's operator set that brought it.
        writable: whether ``Graph.insert`` can write it (into an ONNX graph only, if it has a
            domain of its own).

    What it computes:
        product: a product of its operands, and of which sort.
        attention: a softmax, or a fused softmax(q k^T) v in one operator.
        activation: what people call the activation function that it is.
        arithmetic: 'sum' (of two values, or their difference), 'product' (or quotient), 'sign', or
            'many' for a sum or mean of any number of values.
        commutes: a sum or product of two values, which may be exchanged.
        move: how it moves, copies or rounds values; it computes nothing from them.
        quantises: whether it makes codes of numbers, 'there', or numbers of codes, 'back'.
        selects: whether an index, its second input, says which elements it picks.
        statistic: the number that it computes from many, if a norm may be built on that.
        pool: what people call it where it makes one token of many.
        root: 'square'; 'logarithm', which is half of one: exp(-log(x) / 2); 'inside' for an
            operator that takes the root of a statistic inside.
        norm: the kind of norm that it is (see ``norms.site.KINDS``).
        norm_with_sum: the kind of norm that it is of a sum that it computes as well.
        sum_output: which of its outputs that sum is.
        scale: which input of a norm is its weight; the bias follows.
        degree: d, where a scale s > 0 of its one computed input scales its result by s^d.
        beside: what a norm does beside, so that nothing else can stand in its place.
        join: what it does with branches of a model that meet in it.

    How it treats its input:
        by_element: it is a function of each element of its one input, and no activation either.
        rowwise: alike for every row, so that what holds for a few rows holds for all.
        barrier: no norm reaches across it, although no other field says so.
        takes_sizes: numbers behind its first input give its result a shape and are not computed
            with.
        reads_sizes_only: it reads the shape of its input and none of its values.
        control_flow: it runs bodies of other operators, or does not.
        repeats: it runs a body again and again, as often as its inputs say.
        random: another result in every run.

    Its parameters:
        has_bias: its third input, which may be absent, is added to its product.
        parameters: the names of the inputs behind its first one, which are attributes in some
            versions of the operator set. Where they are constant, ``Node.attributes`` has them.
        parameters_since: the version from which on they are inputs; of those that can be written.
        defaults: the values of attributes that are absent.
        bounds_from_sizes: exporters compute its parameters from sizes even where they are fixed.
    """

    name: str
    domain: str = ""
    since: int = 1
    writable: bool = False

    product: Literal["", "matrix", "convolution", "einsum"] = ""
    attention: Literal["", "softmax", "fused"] = ""
    activation: str = ""
    arithmetic: Literal["", "sum", "product", "sign", "many"] = ""
    commutes: bool = False
    move: Move = ""
    quantises: Literal["", "there", "back"] = ""
    selects: bool = False
    statistic: str = ""
    pool: str = ""
    root: Literal["", "square", "logarithm", "inside"] = ""
    norm: str = ""
    norm_with_sum: str = ""
    sum_output: int = 3
    scale: int = 1
    degree: float | None = None
    beside: str = ""
    join: str = ""

    by_element: bool = False
    rowwise: bool = False
    barrier: bool = False
    takes_sizes: bool = False
    reads_sizes_only: bool = False
    control_flow: bool = False
    repeats: bool = False
    random: bool = False

    has_bias: bool = False
    parameters: tuple[str, ...] = ()
    parameters_since: int = 1
    defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)
    bounds_from_sizes: bool = False

    @property
    def opset(self) -> int:
        """The version of ONNX's default operator set that a graph with it needs."""
        return 1 if self.domain else self.since

    @property
    def passes_through(self) -> bool:
        """Whether it hands on values of its first input, all or a part, and computes nothing."""
        return self.move in ("copy", "transpose", "reshape", "expand", "slice")

    @property
    def normalises(self) -> str:
        """The kind of norm that it is, of its input or of a sum."""
        return self.norm or self.norm_with_sum

    @property
    def keeps_channels(self) -> bool:
        """Whether it moves, repeats, pads, resizes or averages elements of its first input along
        axes, so that those of the others stay apart."""
        moves = self.move in ("gather", "split", "pad", "roll", "tile", "resize")
        return self.passes_through or moves or self.statistic in ("mean", "sum")

    @property
    def homogeneity(self) -> float | None:
        """Its ``degree``; that of one which only moves values is 1."""
        moves = self.passes_through or self.move in ("split", "gather", "roll", "tile")
        return 1.0 if self.degree is None and moves else self.degree

    @property
    def combines_two(self) -> bool:
        """Whether it is a sum, difference, product or quotient of two values."""
        return self.arithmetic in ("sum", "product")

    @property
    def is_of_elements(self) -> bool:
        """Whether it computes each element of its result from those that stand at its place."""
        plain = bool(self.activation) and not (self.attention or self.domain)
        return self.combines_two or self.by_element or plain

    @property
    def is_barrier(self) -> bool:
        """Whether no norm that is spelled out reaches across it."""
        multiplies = self.product in ("matrix", "convolution")
        joins_or_parts = self.move in ("split", "concat", "gather")
        named = bool(self.attention or self.activation or self.normalises)
        return self.barrier or multiplies or joins_or_parts or named or self.control_flow


def _reduction(name: str, statistic: str = "", **facts: Any) -> Operator:
    """A reduction over ``axes``, all where none are given."""
    return Operator(
        name,
        statistic=statistic,
        parameters=("axes",),
        defaults={"keepdims": 1},
        bounds_from_sizes=True,
        **facts,
    )


_EPSILON: dict[str, Any] = {"epsilon": 1e-5}
_TINY_EPSILON: dict[str, Any] = {"epsilon": 1e-12}
_SUM = "computes the sum that it normalises as well"

OPERATORS: tuple[Operator, ...] = (
    # Products
    Operator("Linear", product="matrix", has_bias=True),
    Operator("MatMul", product="matrix", join="product", writable=True),
    Operator(
        "Gemm",
        product="matrix",
        has_bias=True,
        defaults={"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0},
        writable=True,
    ),
    Operator("Conv", product="convolution", has_bias=True, defaults={"group": 1}, writable=True),
    Operator("ConvTranspose", product="convolution", has_bias=True, defaults={"group": 1}),
    Operator("Einsum", since=12, product="einsum"),
    Operator("aten.conv*", product="convolution"),
    # Attention
    Operator("Softmax", attention="softmax", activation="softmax", defaults={"axis": -1}),
    Operator("Attention", since=23, attention="fused"),
    Operator("*Attention", attention="fused"),  # those of runtimes: com.microsoft.Attention
    Operator("aten.*attention*", attention="fused"),
    Operator("*scaled_dot_product*", attention="fused"),
    # Activations
    Operator("BiasGelu", domain=RUNTIME_DOMAIN, activation="GELU"),
    Operator("Elu", activation="ELU", writable=True),
    Operator("Erf", since=9, barrier=True, by_element=True, writable=True),  # of a GELU
    Operator("FastGelu", domain=RUNTIME_DOMAIN, activation="GELU"),
    Operator("Gelu", since=20, activation="GELU", writable=True),
    Operator("HardSwish", since=14, activation="HardSwish", writable=True),
    Operator("LeakyRelu", degree=1, activation="LeakyReLU", writable=True),
    Operator("Mish", since=18, activation="Mish", writable=True),
    Operator("PRelu", activation="PReLU"),
    Operator("QuickGelu", domain=RUNTIME_DOMAIN, activation="quick GELU"),
    Operator("Relu", degree=1, activation="ReLU", writable=True),
    Operator("Sigmoid", activation="sigmoid", writable=True),
    Operator("Softplus", activation="softplus", writable=True),
    Operator("Swish", since=24, activation="SiLU", writable=True),
    Operator("Tanh", activation="tanh", writable=True),
    # Arithmetic
    Operator("Add", arithmetic="sum", commutes=True, rowwise=True, join="add", writable=True),
    Operator("Div", arithmetic="product", rowwise=True, writable=True),
    Operator("Mean", arithmetic="many"),
    Operator(
        "Mul", arithmetic="product", commutes=True, rowwise=True, join="multiply", writable=True
    ),
    Operator("Neg", degree=1, arithmetic="sign", rowwise=True),
    Operator("Sub", arithmetic="sum", rowwise=True, writable=True),
    Operator("Sum", arithmetic="many"),
    # Functions of each element; of Pow the exponent decides whether it is a root
    Operator("Abs", degree=1, rowwise=True, writable=True),
    Operator("Clip", parameters=("min", "max"), parameters_since=11, writable=True),
    Operator("Exp", rowwise=True, writable=True),
    Operator("Log", root="logarithm", rowwise=True),
    Operator("Max", rowwise=True, writable=True),
    Operator("Pow", rowwise=True),
    Operator("Reciprocal", degree=-1, rowwise=True),
    Operator("Rsqrt", degree=-0.5, root="square", rowwise=True),
    Operator("Sqrt", degree=0.5, root="square", rowwise=True, writable=True),
    # Norms
    Operator(
        "LayerNormalization",
        since=17,
        norm="layer_norm",
        rowwise=True,
        defaults={"axis": -1} | _EPSILON,
        writable=True,
    ),
    Operator(
        "RMSNormalization",
        since=23,
        norm="rms_norm",
        rowwise=True,
        defaults={"axis": -1} | _EPSILON,
        writable=True,
    ),
    Operator(
        "BatchNormalization",
        norm="batch_norm",
        rowwise=True,
        defaults={"training_mode": 0} | _EPSILON,
        writable=True,
    ),
    Operator(
        "InstanceNormalization",
        norm="instance_norm",
        rowwise=True,
        defaults=_EPSILON,
        writable=True,
    ),
    Operator("GroupNormalization", since=18, norm="group_norm", defaults=_EPSILON, writable=True),
    Operator(
        "MeanVarianceNormalization",
        since=9,
        norm="layer_norm",  # over these axes; of others it is another one
        defaults={"axes": (0, 2, 3)},
        beside="adds its epsilon to the deviation, not to the variance",
    ),
    Operator(
        "SimplifiedLayerNormalization",  # which ONNX Runtime writes into ONNX's own domain
        domain=RUNTIME_DOMAIN,
        norm="rms_norm",
        defaults={"axis": -1} | _EPSILON,
    ),
    Operator(
        "GroupNorm",
        domain=RUNTIME_DOMAIN,
        norm="group_norm",
        defaults={"channels_last": 1} | _EPSILON,
        beside="has its channels last or an activation inside",
    ),
    Operator(
        "SkipLayerNormalization",
        domain=RUNTIME_DOMAIN,
        norm_with_sum="layer_norm",
        scale=2,
        defaults=_TINY_EPSILON,
        beside=_SUM,
        writable=True,
    ),
    Operator(
        "SkipSimplifiedLayerNormalization",
        domain=RUNTIME_DOMAIN,
        norm_with_sum="rms_norm",
        scale=2,
        defaults=_TINY_EPSILON,
        beside=_SUM,
        writable=True,
    ),
    Operator(
        "SkipGroupNorm",
        domain=RUNTIME_DOMAIN,
        norm_with_sum="group_norm",
        sum_output=1,
        defaults={"channels_last": 1} | _EPSILON,
        beside=_SUM,
    ),
    Operator(
        "EmbedLayerNormalization",
        domain=RUNTIME_DOMAIN,
        norm_with_sum="layer_norm",
        sum_output=2,
        scale=5,
        defaults=_TINY_EPSILON,
        beside="looks the embeddings up and adds them",
    ),
    # Statistics and pools
    Operator("ArgMax", defaults={"axis": 0}),
    Operator(
        "AveragePool",
        degree=1,
        statistic="mean",
        pool="local mean",
        defaults={"count_include_pad": 0},
    ),
    Operator("CumSum", since=11, statistic="running sum"),
    Operator("GlobalAveragePool", degree=1, statistic="mean", pool="mean"),
    Operator("GlobalMaxPool", degree=1, pool="maximum"),
    Operator(
        "LpNormalization",
        degree=0,
        statistic="L2 norm",
        root="inside",
        rowwise=True,
        writable=True,
    ),
    Operator("MaxPool", degree=1, pool="local maximum"),
    _reduction("ReduceL1", "L1 norm", degree=1),
    _reduction("ReduceL2", "L2 norm", degree=1, root="inside", rowwise=True),
    _reduction(
        "ReduceMax", "maximum", degree=1, pool="maximum", writable=True, parameters_since=18
    ),
    _reduction(
        "ReduceMean",
        "mean",
        degree=1,
        pool="mean",
        rowwise=True,
        writable=True,
        parameters_since=18,
    ),
    _reduction("ReduceMin", degree=1),
    _reduction("ReduceSum", "sum", degree=1, pool="sum", rowwise=True),
    _reduction("ReduceSumSquare", "sum of squares", degree=2, rowwise=True),
    Operator("aten.adaptive_avg_pool*d.default", pool="mean", move="resize"),
    Operator("aten.amax.default", degree=1, pool="maximum"),
    Operator("aten.avg_pool*", pool="local mean"),
    Operator("aten.linalg_vector_norm*", degree=1, statistic="norm", root="inside"),
    Operator("aten.max.dim", pool="maximum"),
    Operator("aten.max_pool*", pool="local maximum"),
    Operator("aten.norm.*", degree=1, statistic="norm", root="inside"),
    Operator("aten.std*", degree=1, statistic="deviation", root="inside", rowwise=True),
    Operator("aten.var*", degree=2, statistic="variance", rowwise=True),
    # Moves that hand on one value
    Operator("Cast", move="copy", rowwise=True, writable=True),
    Operator("Dropout", move="copy", parameters=("ratio", "training_mode")),
    Operator("Expand", since=8, move="expand", parameters=("shape",), takes_sizes=True),
    Operator("Flatten", move="reshape", defaults={"axis": 1}),
    Operator("Identity", move="copy", rowwise=True),
    Operator(
        "Reshape",
        move="reshape",
        parameters=("shape",),
        parameters_since=5,
        takes_sizes=True,
        writable=True,
    ),
    Operator(
        "Slice",
        move="slice",
        parameters=("starts", "ends", "axes", "steps"),
        parameters_since=10,
        takes_sizes=True,
        bounds_from_sizes=True,
        writable=True,
    ),
    Operator("Squeeze", move="reshape", rowwise=True, parameters=("axes",), bounds_from_sizes=True),
    Operator("Transpose", move="transpose", rowwise=True, writable=True),
    Operator(
        "Unsqueeze", move="reshape", rowwise=True, parameters=("axes",), bounds_from_sizes=True
    ),
    # Other moves
    Operator("Concat", move="concat", defaults={"axis": 0}, join="concat"),
    Operator("DepthToSpace", move="other"),
    Operator("DequantizeLinear", since=10, move="other", quantises="back"),
    Operator("Gather", move="gather", selects=True, defaults={"axis": 0}),
    Operator("GatherElements", since=11, selects=True),
    Operator("GatherND", since=11, move="gather", selects=True),
    Operator(
        "Pad",
        move="pad",
        parameters=("pads", "value", "axes"),
        parameters_since=11,
        takes_sizes=True,
        bounds_from_sizes=True,
        writable=True,
    ),
    Operator("QuantizeLinear", since=10, move="other", quantises="there"),
    Operator("Resize", since=10, move="resize", takes_sizes=True),
    Operator("ScatterND", since=11, move="other"),
    Operator("SpaceToDepth", move="other"),
    Operator(
        "Split",
        move="split",
        parameters=("split",),
        defaults={"axis": 0, "keepdims": True},
        bounds_from_sizes=True,
    ),
    Operator("Tile", move="tile", parameters=("repeats",), takes_sizes=True),
    Operator("Upsample", move="resize", takes_sizes=True),
    Operator("Where", since=9, move="other"),
    Operator("aten.fill.Tensor", move="other"),
    Operator("aten.flip.default", move="roll"),
    Operator("aten.im2col.default", move="other"),
    Operator("aten.index.Tensor", move="other"),
    Operator("aten.pixel_shuffle.default", move="other"),
    Operator("aten.repeat.default", move="other", takes_sizes=True),
    Operator("aten.roll.default", move="roll"),
    Operator("aten.unfold.default", move="other"),
    # Sizes
    Operator("ConstantOfShape", since=9, takes_sizes=True),
    Operator("Shape", reads_sizes_only=True, writable=True),
    Operator("Size", reads_sizes_only=True),
    Operator("aten.as_strided*", takes_sizes=True),
    Operator("aten.expand*", takes_sizes=True),
    Operator("aten.repeat*", takes_sizes=True),
    Operator("aten.reshape*", takes_sizes=True),
    Operator("aten.view*", takes_sizes=True),
    # Control flow
    Operator("If", control_flow=True),
    Operator("Loop", control_flow=True, repeats=True),
    Operator("Scan", since=8, control_flow=True, repeats=True),
    Operator("SequenceMap", since=17, control_flow=True, repeats=True),
    Operator("cond", control_flow=True),
    Operator("while_loop", control_flow=True, repeats=True),
    # Random numbers
    Operator("Bernoulli", since=15, random=True),
    Operator("Multinomial", since=7, random=True),
    Operator("Random*", random=True),
)

_PATTERNS = tuple(row for row in OPERATORS if "*" in row.name)
_BY_NAME = {row.name: row for row in OPERATORS} | {
    f"{row.domain}.{row.name}": row for row in OPERATORS if row.domain
}


@functools.cache
def operator(name: str) -> Operator:
    """The row of an operator by its name as ``Node.op`` has it, with its domain or without.

    An empty row where the table has none. Of several patterns the first one in the table holds.
    """
    row = _BY_NAME.get(name) or next((r for r in _PATTERNS if fnmatchcase(name, r.name)), None)
    return row or Operator(name)


def norm_operator(kind: str) -> str:
    """The name of the operator that is a norm of ``kind``; KeyError where there is none.

    >>> operator(norm_operator("rms_norm")).opset
    23
    """
    return _NORMS[kind]


def norm_with_sum_operator(kind: str) -> str | None:
    """The name of the operator that computes a sum of two values and its norm of ``kind``, in
    ``RUNTIME_DOMAIN``; None where there is none.

    >>> norm_with_sum_operator("layer_norm")
    'SkipLayerNormalization'
    """
    written = (row for row in OPERATORS if row.norm_with_sum and row.writable)
    return next((row.name for row in written if row.norm_with_sum == kind), None)


_NORMS = {row.norm: row.name for row in OPERATORS if row.norm and not row.domain and not row.beside}
