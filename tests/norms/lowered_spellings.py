"""Norms spelled by way of another norm's operator, and pairs of norms that share statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from tests.norms.onnx_sheet import FLOAT32
from tests.norms.spelling_plan import CHOICES, Plan, fitted, plans
from tests.norms.spelling_truth import Array, Case, Truth
from tests.norms.spelling_writer import Affine, Writer, rounded

# 'rows': as [1, rows, C]; 'one': as [-1, 1, C]; 'direct': as it is; 'all': as [B, 1, everything].
OPERATORS = (
    "layer_norm", "instance_one", "instance_rows", "instance_direct", "instance_all",
    "batch_training", "rms_norm",
)  # fmt: skip
_SINCE = {"layer_norm": 17, "batch_training": 14, "rms_norm": 23}


def lowered(plan: Plan, operator: str, factor: float) -> Case:
    """A LayerNorm as ``operator`` with its scale all ``factor``, and gamma and beta behind it.

    An operator that is a norm of the same kind has to be a plain one to be part of another.
    """
    factor = 1.0 if operator in ("layer_norm", "rms_norm") else factor
    if operator.startswith("instance") and plan.affine == "none":
        plan = replace(plan, affine="gamma")  # or it would be an InstanceNorm as good
    plan = replace(
        plan,
        kind="rms_norm" if operator == "rms_norm" else "layer_norm",
        opset=max(plan.opset, _SINCE.get(operator, 0)),
        layout="last_two" if operator == "instance_all" else "last",
        rank=3 if operator in ("instance_all", "instance_direct") else plan.rank,
        batch=2 if plan.batch == "B" and operator.endswith(("rows", "training")) else plan.batch,
    )
    writer = Writer(fitted(plan))
    x = writer.begin()
    n, epsilon = _operator(writer, x, operator, factor)
    affine = writer.affine()
    y = n if affine.gamma is None else writer.mul(n, writer.parameter("gamma", affine.gamma))
    y = y if affine.beta is None else writer.add(y, writer.parameter("beta", affine.beta))
    gamma = affine.gamma
    if factor != 1:
        gamma = factor * (np.ones(writer.plan.normalized_shape) if gamma is None else gamma)
    truth = writer.truth(x, y, epsilon, Affine(gamma, affine.beta))
    writer.end(y)
    return writer.case(truth, note=f"{operator} * {factor}")


def _operator(writer: Writer, x: str, operator: str, factor: float) -> tuple[str, float]:
    """The value normalised by ``operator``, in the shape of ``x``; and its epsilon."""
    sheet, plan = writer.sheet, writer.plan
    epsilon = rounded(plan.epsilon, FLOAT32)

    def filled(count: int | tuple[int, ...], value: float) -> str:
        return sheet.constant(np.full(count, value), FLOAT32, plan.epsilon_how)

    if operator in ("layer_norm", "rms_norm"):
        inputs = [x, filled(plan.normalized_shape, factor)]
        if operator == "layer_norm" and plan.seed % 2:
            inputs.append(filled(plan.normalized_shape, 0.0))
        kind = "LayerNormalization" if operator == "layer_norm" else "RMSNormalization"
        return sheet.op(kind, *inputs, axis=-len(writer.axes), epsilon=epsilon), epsilon
    sizes = [n if isinstance(n, int) else -1 for n in writer.sizes]
    rows = int(np.prod([n for i, n in enumerate(sizes) if i not in writer.axes]))
    channels, shape = {
        "instance_one": (1, [-1, 1, plan.count]),
        "instance_all": (1, [sizes[0], 1, plan.count]),
        "instance_direct": (sizes[1], []),
    }.get(operator, (rows, [1, rows, plan.count]))
    z = sheet.reshape(x, shape) if shape else x
    scale, shift = filled(channels, factor), filled(channels, 0.0)
    if operator == "batch_training":
        running = [filled(channels, 0.0), filled(channels, 1.0)]
        inputs = [z, scale, shift, *running]
        n = sheet.op("BatchNormalization", *inputs, outputs=3, training_mode=1, epsilon=epsilon)
    else:
        n = sheet.op("InstanceNormalization", z, scale, shift, epsilon=epsilon)
    return sheet.reshape(n, sizes) if shape else n, epsilon


def l2_norm(plan: Plan, how: str) -> Case:
    """An RMSNorm without epsilon: x / ||x|| * sqrt(C) * gamma."""
    writer = Writer(plan)
    sheet, x = writer.sheet, writer.begin()
    axis = writer.axes[0]
    if how == "operator":
        n = sheet.op("LpNormalization", x, axis=axis, p=2)
    elif how == "l2":
        n = sheet.op("Div", x, writer.reduced("ReduceL2", x))
    else:
        total = writer.reduced("ReduceSum", writer.squared(x))
        n = writer.divided(x, writer.root(total))
    affine = writer.affine()
    gamma: Array = np.ones(plan.normalized_shape) if affine.gamma is None else affine.gamma
    if plan.seed % 2:  # in one product
        gamma = np.asarray(rounded(gamma * np.sqrt(plan.count), writer.affine_dtype))
        y = writer.mul(n, writer.parameter("gamma", gamma))
        gamma = gamma / np.sqrt(plan.count)
    else:
        root = rounded(np.sqrt(plan.count), writer.affine_dtype)
        y = writer.mul(n, sheet.constant(root, writer.affine_dtype))
        y = y if affine.gamma is None else writer.mul(y, writer.parameter("gamma", gamma))
        gamma = gamma * root / np.sqrt(plan.count)
    truth = writer.truth(x, y, 0.0, Affine(gamma, None))
    writer.end(y)
    return writer.case(truth, note=f"x / ||x|| by {how}")


def two_norms(plan: Plan, share: str) -> Case:
    """Two norms of one value that share the normalised value, the root or only the mean."""
    writer = Writer(plan)
    x = writer.begin()
    first, second = writer.affine(), writer.affine()
    if share == "mean" and plan.kind == "layer_norm":
        m = writer.mean(x)
        ends = [_one_of_two(writer, x, m, affine) for affine in (first, second)]
    else:
        m_or_none, d, v, factor = writer.statistics(x)
        name, epsilon = writer.epsilon()
        root = writer.root(writer.plus_epsilon(v, name))
        shared = writer.divided(d, root) if share == "normalised" else None
        ends = []
        for affine in (first, second):
            if shared:
                g = affine.gamma
                assert g is not None
                y = writer.mul(shared, writer.parameter("gamma", g))
                y = (
                    y
                    if affine.beta is None
                    else writer.add(y, writer.parameter("beta", affine.beta))
                )
                counts = Affine(writer.sign * g, affine.beta)
            else:
                y, counts = writer.assembled(x, m_or_none, d, root, affine)
            ends.append((y, writer.truth(x, y, epsilon / factor, counts, factor)))
    for y, _ in ends:
        writer.end(y)
    return writer.case(*(truth for _, truth in ends), note=f"two norms share the {share}")


def _one_of_two(writer: Writer, x: str, m: str, affine: Affine) -> tuple[str, Truth]:
    d, spread = writer.deviations(x, m)
    v, factor = writer.variance(spread)
    name, epsilon = writer.epsilon()
    root = writer.root(writer.plus_epsilon(v, name))
    y, counts = writer.assembled(x, m, d, root, affine)
    return y, writer.truth(x, y, epsilon / factor, counts, factor)


_NO_REDUCTIONS: dict[str, tuple[str, ...]] = {
    name: CHOICES[name][:1]
    for name in ("mean", "deviation", "square", "average", "variance", "restore", "root", "order")
}


def lowered_spellings() -> st.SearchStrategy[Case]:
    """LayerNorm as InstanceNormalization, BatchNormalization in training mode, or a plain norm."""
    drawn = plans(
        **_NO_REDUCTIONS, dtype=("float32", "float16_around"), reader=("none",),
        around=("none", "transposed"),
    )  # fmt: skip
    factors = st.sampled_from((1.0, 2.0))
    return st.builds(lowered, drawn, st.sampled_from(OPERATORS), factors)


def l2_spellings() -> st.SearchStrategy[Case]:
    """RMSNorms without epsilon."""
    drawn = plans(
        kind=("rms_norm",), layout=("last",), order=("plain",), affine=("gamma", "none"),
        affine_shape=("vector", "row", "full"), numbers=((),), variance=("biased",),
        dtype=("float32", "float16_around"), reader=("none",),
        source=("graph", "add"),  # a row of zeros has no direction
    )  # fmt: skip
    return st.builds(l2_norm, drawn, st.sampled_from(("operator", "l2", "root")))


def two_norm_spellings() -> st.SearchStrategy[Case]:
    """Two norms that share statistics."""
    drawn = plans(
        kind=("layer_norm", "rms_norm"), affine=("both", "gamma"), gamma=("random",),
        dtype=("float32", "float16_around", "float16_statistics"), after=("none", "relu"),
        reader=("none",), order=("plain", "scale_first", "gamma_inside", "shift_inside"),
    )  # fmt: skip
    return st.builds(two_norms, drawn, st.sampled_from(("normalised", "root", "mean")))
