"""Forms of an operator measured on this machine: their times, their errors, and the one to take.

What was measured is kept in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Runner
from normswap.io.atomic import atomic_path
from normswap.lowering.kernels.library import cache_folder
from normswap.lowering.targets import Runtime
from normswap.runtimes import Compiled
from normswap.runtimes.machine import processor, processors
from normswap.timing.paired import compare

_SCHEMA = "normswap.tuning/1"

_ROUNDS = 48
_NOISE = 1.02  # ratios up to it are no difference
_FACTOR, _ULPS = 2.0, 1.0  # the exact contract: see normswap.parity.exact


@dataclass(frozen=True)
class Measured:
    """One form beside the original: its time as a ratio (median and quartiles of paired runs), and
    its largest error against float64 as a share of what the exact contract allows. A ``refusal`` of
    the runtime leaves both at infinity."""

    ratio: float = float("inf")
    low: float = float("inf")
    high: float = float("inf")
    error: float = float("inf")
    refusal: str = ""

    @property
    def is_exact(self) -> bool:
        return self.error <= 1


def choose(measured: Mapping[str, Measured], default: str) -> str:
    """The form to take. The first of ``measured`` is the original. The ``default`` is taken unless
    it is slower or less accurate than that; any other only if it is clearly faster than both."""
    original = next(iter(measured))
    best = default
    if not measured[default].is_exact or measured[default].low > _NOISE:
        best = original
    for form in measured:
        fast = measured[form].high < min(measured[best].low, 1 / _NOISE)
        if form not in (original, default) and measured[form].is_exact and fast:
            best = form
    return best


def described(measured: Mapping[str, Measured], original: str) -> str:
    """Why, in one line: what each form took beside the original, and what ruled it out."""
    parts = []
    for form, m in measured.items():
        if form == original:
            continue
        outcome = m.refusal or f"{m.ratio:.2f} ({m.low:.2f}-{m.high:.2f})"
        if not m.is_exact and not m.refusal:
            outcome += f", error {m.error:.1f} times what is allowed"
        parts.append(f"{form} {outcome}")
    return f"time beside {original}: {'; '.join(parts)}"


def measure(
    runtime: Runtime,
    forms: Mapping[str, onnx.ModelProto],
    shapes: Sequence[tuple[tuple[int, ...], np.dtype[np.generic]]],
    truth: Runner,
) -> dict[str, Measured]:
    """Each of ``forms`` in ``runtime``, beside the first, which is the original.

    All take the same inputs, of ``shapes``, and give the same outputs; ``truth`` gives the outputs
    in float64. Recalled where this machine has measured the same before.
    """
    key = key_of(runtime.name, *(f"{name}:{_signature(proto)}" for name, proto in forms.items()))
    return recalled(key, list(forms), lambda: _measured(runtime, forms, shapes, truth))


def recalled(
    key: str, names: Sequence[str], measured: Callable[[], dict[str, Measured]]
) -> dict[str, Measured]:
    """What this machine measured of ``names`` under ``key``; ``measured()``, kept, if nothing."""
    known = recall(key, names)
    if known is not None:
        try:
            return {name: Measured(**known[name]) for name in names}
        except TypeError:
            pass  # another version of this program wrote the file
    new = measured()
    remember(key, {name: asdict(m) for name, m in new.items()})
    return new


def _measured(
    runtime: Runtime,
    forms: Mapping[str, onnx.ModelProto],
    shapes: Sequence[tuple[tuple[int, ...], np.dtype[np.generic]]],
    truth: Runner,
) -> dict[str, Measured]:
    runs: dict[str, Callable[[Sequence[Array]], list[Array]]] = {}
    refused: dict[str, Measured] = {}
    probes = [[_drawn(kind, *s, seed) for seed, s in enumerate(shapes)] for kind in _PROBES]
    errors: dict[str, list[tuple[float, float]]] = {}
    for name, proto in forms.items():
        try:
            runs[name] = _in_order(runtime.compile(proto), [i.name for i in proto.graph.input])
            errors[name] = [_error(runs[name](probe), truth(probe)) for probe in probes]
        except NormswapError as error:
            refused[name] = Measured(refusal=str(error))
        except Exception as error:  # a runtime that fails at what it has accepted
            refused[name] = Measured(refusal=f"fails: {str(error).splitlines()[0]}")
            runs.pop(name, None)
    original = next(iter(forms))
    if original not in runs:
        raise NormswapError(f"--tune: {refused[original].refusal}")
    timed = {name: functools.partial(run, probes[0]) for name, run in runs.items()}
    times = compare(timed, original, _ROUNDS)
    bounds = [_FACTOR * error + slack for error, slack in errors[original]]
    measured = {}
    for name in forms:
        if name in refused:
            measured[name] = refused[name]
            continue
        shares = [
            e / b if b else float(e > 0) for (e, _), b in zip(errors[name], bounds, strict=True)
        ]
        t = times[name]
        worst = float(np.nan_to_num(np.max(shares), nan=np.inf))
        measured[name] = Measured(t.ratio, t.low, t.high, worst)
    return measured


def _in_order(compiled: Compiled, names: Sequence[str]) -> Callable[[Sequence[Array]], list[Array]]:
    return lambda arrays: compiled(dict(zip(names, arrays, strict=True)))


def _error(got: Sequence[Array], exact: Sequence[Array]) -> tuple[float, float]:
    """The largest error of the outputs, and an ulp of their scale, as shares of that scale."""
    worst, slack = 0.0, 0.0
    for g, e in zip(got, exact, strict=True):
        scale = float(np.abs(e).max(initial=0)) or 1.0
        difference = float(np.abs(g.astype(np.float64) - e).max(initial=0)) / scale
        worst = max(worst, difference)
        slack = max(slack, _ULPS * float(ml_dtypes.finfo(g.dtype).eps))
    return worst, slack


# Rows as they come; far from zero; nearly constant; and with a few channels far from the others.
_PROBES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "large mean": lambda random, shape: 1e4 + random.standard_normal(shape),
    "tiny variance": lambda random, shape: 1e-4 * random.standard_normal(shape),
    "outliers": lambda random, shape: random.standard_normal(shape) ** 9 / 100,
}


def _drawn(kind: str, shape: tuple[int, ...], dtype: np.dtype[np.generic], seed: int) -> Array:
    drawn = _PROBES[kind](np.random.default_rng(seed), shape)
    limit = float(ml_dtypes.finfo(dtype).max) / 8
    return np.clip(drawn, -limit, limit).astype(dtype)


def _signature(proto: onnx.ModelProto) -> str:
    """What a model computes, whatever its values are called and its weights contain."""
    numbers: dict[str, int] = {"": -1}
    parts: list[str] = [str([(o.domain, o.version) for o in proto.opset_import])]

    def numbered(names: Sequence[str]) -> list[int]:
        return [numbers.setdefault(name, len(numbers)) for name in names]

    for value in proto.graph.input:
        parts.append(f"{numbered([value.name])} {value.type}")
    for tensor in proto.graph.initializer:
        small = tensor.raw_data if not len(tensor.dims) else b""
        parts.append(f"{numbered([tensor.name])} {tensor.data_type} {tensor.dims} {small.hex()}")
    for node in proto.graph.node:
        reads, writes = numbered(node.input), numbered(node.output)
        parts.append(f"{node.domain}.{node.op_type} {reads} {writes} {list(node.attribute)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def key_of(*parts: str) -> str:
    """The key of a measurement: of what was measured, and of the machine that did."""
    machine = (platform.machine(), processor(), str(processors()))
    text = "\0".join((_SCHEMA, *machine, *parts))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def recall(key: str, fields: Sequence[str]) -> dict[str, Any] | None:
    """What was measured under ``key``: a dictionary with ``fields``; None where there is none, or
    none that can be read."""
    try:
        entry = json.loads(_file(key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    fits = isinstance(entry, dict) and entry.get("schema") == _SCHEMA
    return entry if fits and all(field in entry for field in fields) else None


def remember(key: str, measured: dict[str, Any]) -> None:
    """Keeps it; where the folder cannot be written it is measured again next time."""
    file = _file(key)
    with contextlib.suppress(OSError, NormswapError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps({"schema": _SCHEMA, **measured}), encoding="utf-8")


def _file(key: str) -> Path:
    return cache_folder() / "tuning" / f"{key}.json"
