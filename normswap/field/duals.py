"""Arrays that carry their numbers over a field along, so that a pass runs over it.

A pass computes new weights with numpy, from constants of the graph. Over a ``Field`` it reads
``Dual`` arrays in their place: ordinary arrays, from which it takes all decisions as it always
does, that hold a ``Exact`` value beside. What numpy computes with them is computed beside as well,
exactly; where a weight is rounded to its dtype, the value beside is not. No rule of a pass is
written twice.

What this file does not know makes a plain array of a dual one. It counts as the rounded numbers
that it holds, so that nothing worse follows than that a right result is not certified.

>>> over = Field(5)
>>> third = 1 / Dual(np.array(3.0), over)
>>> over.multiply(third.exact, over.constant(np.array(3.0))).residues[:, ...].tolist()
[1.0, 1.0, 1.0, 1.0, 1.0]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import numpy as np

from normswap.field.evaluation import Side, evaluate
from normswap.field.exact import Exact
from normswap.field.values import Field
from normswap.graph.graph import Array, Graph, Value, is_floating
from normswap.norms.site import Site

_CURRENT: ContextVar[Field | None] = ContextVar("field", default=None)


class Dual(np.ndarray):
    """An array with ``exact``, what its numbers are over the field ``over``; by default the numbers
    that it holds."""

    over: Field | None
    exact: Exact | None

    def __new__(cls, array: Array, over: Field, exact: Exact | None = None) -> Dual:
        found = np.asarray(array).view(cls)
        found.over, found.exact = over, exact or over.constant(np.asarray(array))
        return found

    def __array_finalize__(self, other: Any) -> None:
        """A view of one, of which numpy alone knows which: it carries nothing."""
        self.over, self.exact = None, None

    # -- what numpy computes ---------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", None)
        result = getattr(ufunc, method)(*map(_plain, inputs), **_plain_all(kwargs))
        over = _field_of(inputs)
        compute = _COMPUTED.get((ufunc, method))
        exact = None
        usual = kwargs.keys() <= {"axis", "keepdims", "dtype"}
        if compute is not None and over is not None and usual:
            exact = compute(over, *[_exact(x, over) for x in inputs], **_plain_all(kwargs))
        found = result if exact is None or over is None else Dual(np.asarray(result), over, exact)
        if out is None:
            return found
        out[0][...] = found if isinstance(out[0], Dual) else result
        # numpy writes into temporary arrays: what it is given back is what goes on
        return out[0] if isinstance(out[0], Dual) or exact is None else found

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        special = _FUNCTIONS.get(function)
        if special is not None:
            return special(*args, **kwargs)
        over = _field_of(_flat([args, kwargs]))
        if function in _MOVES and over is not None:
            return _moved(function, over, args, kwargs)
        return function(*_plain_all(args), **_plain_all(kwargs))

    # -- what its methods do ---------------------------------------------------------------------

    def _move(self, move: Callable[[Array], Array]) -> Any:
        result = move(_plain(self))
        if (
            self.exact is None
            or self.over is None
            or not isinstance(result, np.ndarray | np.generic)
        ):
            return result
        return Dual(np.asarray(result), self.over, self.exact.moved(move))

    def __getitem__(self, key: Any) -> Any:
        return self._move(lambda a: a[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        plain = _plain(self)
        if self.exact is not None and self.over is not None:
            given = _exact(value, self.over)
            planes = [np.array(self.exact.residue(j)) for j in range(self.exact.count)]
            for j, plane in enumerate(planes):
                plane[key] = given.residue(j)
            growth = self.exact.growth.joined(given.growth)
            plain[key] = _plain(value)
            self.exact = Exact(np.array(plain, np.float64), np.stack(planes), growth)
        else:
            plain[key] = _plain(value)

    @property
    def T(self) -> Any:  # noqa: N802 - numpy's name
        return self._move(lambda a: a.T)

    def reshape(self, *shape: Any, **kwargs: Any) -> Any:
        return self._move(lambda a: a.reshape(*shape, **kwargs))

    def transpose(self, *axes: Any) -> Any:
        return self._move(lambda a: a.transpose(*axes))

    def swapaxes(self, one: Any, other: Any) -> Any:
        return self._move(lambda a: a.swapaxes(one, other))

    def squeeze(self, axis: Any = None) -> Any:
        return self._move(lambda a: a.squeeze(axis))

    def ravel(self, order: Any = "C") -> Any:
        return self._move(lambda a: a.ravel(order))

    def copy(self, order: Any = "C") -> Any:
        return self._move(lambda a: a.copy())

    def astype(self, dtype: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Rounded, but for what it carries."""
        result = _plain(self).astype(dtype, **kwargs)
        keeps = is_floating(result.dtype) and self.exact is not None and self.over is not None
        return Dual(result, self.over, self.exact) if keeps and self.over is not None else result

    def contiguous(self, dtype: Any = None) -> Any:
        """See ``graph.contiguous``."""
        return self.astype(dtype or self.dtype, order="C")

    def alike(self, array: Array) -> Array:
        """See ``graph.alike``."""
        return array if self.over is None else Dual(array, self.over)

    def sum(self, axis: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        return np.add.reduce(self, axis=axis, **kwargs)

    def mean(self, axis: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        total = self.sum(axis, **kwargs)
        return total / (self.size // max(np.size(total), 1))


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, Dual) else value


def _plain_all(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_plain_all(v) for v in value)
    if isinstance(value, dict):
        return {key: _plain_all(v) for key, v in value.items()}
    return _plain(value)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for v in value:
            yield from _flat(v)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value


def _field_of(values: Any) -> Field | None:
    """The field of arrays of which at least one carries something."""
    return next((v.over for v in values if isinstance(v, Dual) and v.exact is not None), None)


def _exact(value: Any, over: Field) -> Exact:
    """What a number or an array is over the field."""
    if isinstance(value, Dual) and value.exact is not None:
        return value.exact
    return over.constant(np.asarray(_plain(value)))


def _moved(function: Any, over: Field, args: Any, kwargs: Any) -> Any:
    """A function that only moves elements, on the numbers and modulo each prime."""
    growths = [v.exact.growth for v in _flat([args, kwargs]) if isinstance(v, Dual) and v.exact]
    growth = growths[0]
    for more in growths[1:]:
        growth = growth.joined(more)
    lifts = function in _LIFTING

    def modulo(value: Any, j: int) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(modulo(v, j) for v in value)
        floats = isinstance(value, np.ndarray) and is_floating(value.dtype)
        return (
            _exact(value, over).residue(j)
            if isinstance(value, Dual) or (lifts and floats)
            else value
        )

    plain = function(*_plain_all(args), **_plain_all(kwargs))
    planes = [
        function(*modulo(tuple(args), j), **{k: modulo(v, j) for k, v in kwargs.items()})
        for j in range(over.residues.count)
    ]
    if isinstance(plain, list | tuple):
        return [_dual(over, p, [q[i] for q in planes], growth) for i, p in enumerate(plain)]
    return _dual(over, plain, planes, growth)


def _dual(over: Field, plain: Array, planes: Sequence[Array], growth: Any) -> Dual:
    exact = Exact(np.asarray(plain, np.float64), np.stack(planes), growth)
    return Dual(np.asarray(plain), over, exact)


def _sum(over: Field, x: Exact, *, axis: Any = 0, keepdims: bool = False, **_: Any) -> Exact:
    rank = len(x.shape)
    axes = tuple(range(rank)) if axis is None else tuple(np.atleast_1d(axis) % rank)
    return over.total(x, axes, keepdims)


def _matmul(over: Field, a: Exact, b: Exact) -> Exact:
    left = a.reshaped((1, *a.shape)) if len(a.shape) == 1 else a
    right = b.reshaped((*b.shape, 1)) if len(b.shape) == 1 else b
    found = over.matmul(left, right)
    shape = list(found.shape)
    if len(b.shape) == 1:
        shape.pop()
    if len(a.shape) == 1:
        shape.pop(-1 if len(b.shape) == 1 else -2)
    return found.reshaped(tuple(shape))


_COMPUTED: dict[tuple[Any, str], Callable[..., Exact]] = {
    (np.add, "__call__"): lambda over, a, b: over.add(a, b),
    (np.subtract, "__call__"): lambda over, a, b: over.subtract(a, b),
    (np.multiply, "__call__"): lambda over, a, b: over.multiply(a, b),
    (np.divide, "__call__"): lambda over, a, b: over.divide(a, b),
    (np.negative, "__call__"): lambda over, a: over.negative(a),
    (np.positive, "__call__"): lambda over, a: a,
    (np.square, "__call__"): lambda over, a: over.multiply(a, a),
    (np.sqrt, "__call__"): lambda over, a: over.root(a),
    (np.matmul, "__call__"): _matmul,
    (np.add, "reduce"): _sum,
}
_LIFTING = frozenset({np.concatenate, np.stack, np.where})
_MOVES = _LIFTING | {
    *(np.reshape, np.transpose, np.moveaxis, np.swapaxes, np.broadcast_to, np.take, np.split),
    *(np.expand_dims, np.squeeze, np.repeat, np.tile, np.diag, np.flip, np.copy, np.ravel),
}


def _tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    """Over one axis of each."""
    first, second = axes
    left, right = np.moveaxis(a, first, -1), np.moveaxis(b, second, 0)
    shape = (*left.shape[:-1], *right.shape[1:])
    rows = left.reshape(-1, left.shape[-1]) @ right.reshape(right.shape[0], -1)
    return rows.reshape(shape)


def _inverse(matrix: Any) -> Any:
    """Of one matrix, by elimination modulo each prime; of several plain numbers."""
    plain = np.linalg.inv(_plain(matrix))
    over = _field_of([matrix])
    size = plain.shape[-1]
    if over is None or plain.size != size * size:
        return plain
    exact = _exact(matrix, over)
    planes = [
        _eliminated(over, exact.residue(j).reshape(size, size), j).reshape(plain.shape)
        for j in range(exact.count)
    ]
    growth = exact.growth
    minors = replace(growth, bits=size * (growth.bits + np.log2(max(size, 2))))  # by Hadamard
    growth = replace(
        minors, denominators={**growth.denominators, f"determinant {id(exact)}": (minors.bits, 1)}
    )
    return _dual(over, plain, planes, growth)


def _eliminated(over: Field, matrix: Array, j: int) -> Array:
    size, p = len(matrix), over.residues.primes[j]
    both = np.concatenate([np.array(matrix), np.eye(size)], axis=1)
    for column in range(size):
        pivot = column + int(np.argmax(both[column:, column] != 0))
        if both[pivot, column] == 0:
            raise np.linalg.LinAlgError("singular modulo a prime")
        both[[column, pivot]] = both[[pivot, column]]
        inverse = float(pow(int(both[column, column]), -1, p))
        both[column] = over.residues.reduce(both[column] * inverse, j)
        factors = both[:, column].copy()
        factors[column] = 0
        both = over.residues.reduce(
            both - over.residues.reduce(np.outer(factors, both[column]), j), j
        )
    return both[:, size:]


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.tensordot: _tensordot,
    np.linalg.inv: _inverse,
    np.sum: lambda a, axis=None, **kwargs: np.add.reduce(a, axis=axis, **kwargs),
}


# -- graphs ----------------------------------------------------------------------------------------


class Carried:
    """What a graph's constants are over a field; see ``Graph.carried``."""

    def __init__(self, graph: Graph, over: Field) -> None:
        self.graph, self.over = graph, over
        self.constants: dict[Value, Exact] = {}
        self._computed: dict[Value, Exact | None] = {}

    def read(self, value: Value, array: Array) -> Array:
        """The array of a constant, as a pass reads it."""
        if not is_floating(array.dtype):
            return array
        known = self.constants.get(value) or self._computed.get(value)
        if known is None and value.producer is not None:
            side = Side(self.graph, [], [value], self.constants)
            (found,) = evaluate(self.over, side, []).outputs
            known = self._computed[value] = found if isinstance(found, Exact) else None
        return Dual(array, self.over, known)

    def note(self, value: Value, array: Array) -> None:
        """A constant is new, or has another array from now on."""
        self.constants.pop(value, None)
        self._computed.clear()
        if isinstance(array, Dual) and array.exact is not None:
            exact = array.exact
            self.constants[value] = exact.compact() if exact.source is None else exact

    def copied(self, graph: Graph) -> Carried:
        """The same for a copy of the graph, whose values have the same names."""
        other = Carried(graph, self.over)
        other.constants = {graph.value(v.name): exact for v, exact in self.constants.items()}
        return other


def carrying(graph: Graph, over: Field) -> Carried:
    """Lets a graph, and all copies of it, carry its constants over a field."""
    carried = graph.carried = Carried(graph, over)
    return carried


def carried_by(site: Site, over: Field) -> Site:
    """A site whose arrays carry their numbers over the field."""
    arrays = {n: getattr(site, n) for n in ("weight", "bias", "mean", "variance")}
    duals: dict[str, Any] = {n: Dual(a, over) for n, a in arrays.items() if a is not None}
    return replace(site, **duals)


@contextmanager
def running_over(over: Field) -> Iterator[None]:
    """A block in which ``ratio`` gives arrays that carry their numbers."""
    token = _CURRENT.set(over)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def ratio(number: int, count: int) -> Any:
    """number / count, which a float64 may have to round: for constants that a pass makes."""
    over = _CURRENT.get()
    if over is None:
        return number / count
    return Dual(np.array(number / count), over, over.over(over.constant(np.array(number)), count))
