"""Arithmetic modulo random primes is that of whole numbers and fractions."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normswap.field.residues import POOL, Residues
from normswap.field.values import Field
from normswap.graph.graph import Array

KEY = b"a key of thirty-two bytes or so."
RESIDUES = Residues(3, KEY)


def modulo(number: Fraction, prime: int) -> int:
    return number.numerator * pow(number.denominator, -1, prime) % prime


def expected(numbers: list[float]) -> list[list[int]]:
    return [[modulo(Fraction(n), p) for n in numbers] for p in RESIDUES.primes]


def test_primes_are_primes_of_26_bits_and_depend_on_the_key() -> None:
    primes = Residues(20, KEY).primes
    assert len(set(primes)) == 20
    assert all(
        2**25 < p < 2**26 and pow(2, p - 1, p) == 1 and pow(3, p - 1, p) == 1 for p in primes
    )
    assert primes[:3] == RESIDUES.primes
    assert not set(primes) & set(Residues(20, b"another").primes)


def test_the_pool_is_as_large_as_the_bound_says() -> None:
    sieve = np.ones(2**26 // 2, bool)  # of odd numbers
    sieve[0] = False
    for n in range(3, 2**13, 2):
        if sieve[n // 2]:
            sieve[n * n // 2 :: n] = False
    assert int(sieve[2**25 // 2 :].sum()) == POOL


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_floats_are_the_fractions_that_they_are(dtype: type) -> None:
    random = np.random.default_rng(0)
    array = (random.standard_normal(50) * 10.0 ** random.integers(-6, 4, 50)).astype(dtype)
    array[:3] = np.asarray([0.0, -0.0, ml_dtypes.finfo(dtype).smallest_subnormal], dtype)
    assert RESIDUES.all_of(array).tolist() == expected([float(n) for n in array])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_layout_of_memory_is_converted_in_place(dtype: type) -> None:
    random = np.random.default_rng(0)
    array = random.standard_normal((300, 300, 3)).astype(dtype)  # more than a block
    plain = RESIDUES.all_of(array)
    assert plain.reshape(3, -1)[:, ::5000].tolist() == expected(array.reshape(-1)[::5000].tolist())
    for view in (
        lambda a: a.transpose(2, 0, 1),
        lambda a: a[:, ::-1],
        lambda a: a[::2, 1::3],
        lambda a: np.asfortranarray(a),
        lambda a: np.broadcast_to(a[:1], a.shape),
    ):
        wanted = np.stack([view(plane) for plane in plain])
        assert np.array_equal(RESIDUES.all_of(view(array)), wanted)
        squares = RESIDUES.each(lambda j, v=view: v(plain[j]) * v(plain[j]))
        exact = [
            view(p).astype(np.int64) ** 2 % q for p, q in zip(plain, RESIDUES.primes, strict=True)
        ]
        assert np.array_equal(squares, exact)


def test_integers_are_themselves() -> None:
    assert RESIDUES.all_of(np.array([-3, 0, 2**40])).tolist() == expected([-3, 0, 2**40])
    assert RESIDUES.all_of(np.array([True, False])).tolist() == [[1.0, 0.0]] * 3


def test_what_is_not_finite_is_three_symbols() -> None:
    found = RESIDUES.all_of(np.array([np.inf, -np.inf, np.nan, 1.0], np.float32))
    assert all(len(set(plane.tolist())) == 4 for plane in found)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 7, 8192, 8193, 20000]), st.integers(0, 2**32))
def test_products_of_matrices_are_exact(rows: int, length: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    prime = RESIDUES.primes[0]

    def draw(*shape: int) -> Array:  # the largest residues too
        array = random.integers(0, prime, shape)
        return np.where(random.random(shape) < 0.5, prime - 1, array)

    a, b = draw(rows, length), draw(length, 2)
    found = RESIDUES.matmul(lambda j: a.astype(float), lambda j: b.astype(float))
    wanted = [[sum(int(x) * int(y) for x, y in zip(r, c, strict=True)) for c in b.T] for r in a]
    assert found[0].tolist() == [[n % prime for n in row] for row in wanted]


def test_division_is_that_of_fractions() -> None:
    over = Field(3, KEY)
    single = over.divide(over.constant(np.array(2.0)), over.constant(np.array(0.75))).residues
    assert single.tolist() == [modulo(Fraction(8, 3), p) for p in over.residues.primes]
    found = over.divide(over.constant(np.array([1.5, -7.0])), over.constant(np.array([0.75, 3.0])))
    numbers = [Fraction(2), Fraction(-7, 3)]
    assert found.residues.tolist() == [
        [modulo(n, p) for n in numbers] for p in over.residues.primes
    ]
    third = over.mean(over.constant(np.array([1.0, 0.0, 0.0])), (0,))
    assert third.residues[:, 0].tolist() == [
        modulo(Fraction(1, 3), p) for p in over.residues.primes
    ]


# -- roots and uninterpreted functions -------------------------------------------------------------


def test_roots_take_powers_of_four_out_and_are_true_for_squares() -> None:
    over = Field(2, KEY)
    v = over.symbol(np.random.default_rng(0).uniform(0.01, 100, 200))
    for k in (-6, -2, 4, 10):
        scaled = over.multiply(v, over.constant(np.array(2.0**k)))
        wanted = over.multiply(over.root(v), over.constant(np.array(2.0 ** (k // 2))))
        assert np.array_equal(over.root(scaled).residues, wanted.residues)
    one = over.multiply(over.root(v), over.inverse_root(v))
    assert np.all(one.residues == 1)
    squares = np.array([64.0, 0.25, 1.0, 2.25, 144.0])
    assert np.array_equal(
        over.root(over.constant(squares)).residues, over.residues.all_of(np.sqrt(squares))
    )
    nine_times = over.multiply(v, over.constant(np.array(9.0)))
    minus_three = over.multiply(over.root(v), over.constant(np.array(-3.0)))
    assert not np.any(over.root(nine_times).residues == minus_three.residues)


def test_a_relu_takes_positive_powers_of_two_out_and_no_sign() -> None:
    over = Field(2, KEY)
    x = over.symbol(np.random.default_rng(0).standard_normal(200))

    def relu(x):  # type: ignore[no-untyped-def]
        return over.signed("relu", np.maximum(x.shadow, 0), x)

    half = over.multiply(x, over.constant(np.array(0.5)))
    assert np.array_equal(
        relu(half).residues, over.multiply(relu(x), over.constant(np.array(0.5))).residues
    )
    minus = over.multiply(x, over.constant(np.array(-0.5)))
    wrong = over.multiply(relu(x), over.constant(np.array(-0.5)))
    assert not np.any(relu(minus).residues == wrong.residues)


def test_functions_differ_where_their_arguments_or_names_do() -> None:
    over = Field(2, KEY)
    x = over.symbol(np.arange(100.0))
    one = over.function("exp", x.shadow, x).residues
    assert np.array_equal(one, over.function("exp", x.shadow, x).residues)
    assert not np.any(one == over.function("erf", x.shadow, x).residues)
    last = x.residues.copy()
    last[1, 7] = (last[1, 7] + 1) % over.residues.primes[1]
    y = type(x)(x.shadow, last, x.growth)
    assert (one != over.function("exp", x.shadow, y).residues).any(0).sum() == 1


def test_rows_tell_what_is_in_them_from_where() -> None:
    over = Field(2, KEY)
    x = over.symbol(np.random.default_rng(0).standard_normal((4, 6)))

    def softmax(x):  # type: ignore[no-untyped-def]
        return over.rows("softmax", x.shadow, x, (1,), reduces=False).residues

    swapped = x.moved(lambda a: a[[1, 0, 2, 3]])
    assert np.array_equal(softmax(swapped), softmax(x)[:, [1, 0, 2, 3]])
    turned = x.moved(lambda a: a[:, [1, 0, 2, 3, 4, 5]])
    assert not np.any(softmax(turned) == softmax(x)[..., [1, 0, 2, 3, 4, 5]])
