"""The metrics' values where they are clear, and where they are a matter of definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from normswap.parity import metrics

ZEROS, ONES = np.zeros((2, 3)), np.ones((2, 3))
NAN, INFINITE = np.array([[1.0, math.nan, 3.0]]), np.array([[1.0, math.inf, 3.0]])
PLAIN = np.array([[1.0, 2.0, 3.0]])


def test_sqnr() -> None:
    signal = np.array([3.0, 4.0])
    assert metrics.sqnr_db(signal, signal + np.array([0.3, 0.4])) == pytest.approx(20)
    assert metrics.sqnr_db(signal, signal) == math.inf
    assert metrics.sqnr_db(ZEROS, ZEROS) == math.inf
    assert metrics.sqnr_db(ZEROS, ONES) == -math.inf
    assert metrics.sqnr_db(ONES, ZEROS) == 0
    assert math.isnan(metrics.sqnr_db(ZEROS[:0], ZEROS[:0]))
    for other in (NAN, INFINITE):
        assert math.isnan(metrics.sqnr_db(PLAIN, other))
        assert math.isnan(metrics.sqnr_db(other, PLAIN))


def test_sqnr_is_computed_in_float64() -> None:
    half = np.full(10_000, 300, np.float16)  # its squares overflow
    assert metrics.sqnr_db(half, half + np.float16(3)) == pytest.approx(40)


def test_cosine() -> None:
    a = np.array([[1.0, 0.0], [1.0, 1.0]])
    b = np.array([[0.0, 2.0], [5.0, 5.0]])
    mean, worst = metrics.cosine(a, b)
    assert mean == pytest.approx(0.5)
    assert worst == pytest.approx(0)
    assert metrics.cosine(ZEROS, ZEROS) == (1, 1)
    assert metrics.cosine(ZEROS, ONES) == (0, 0)
    assert metrics.cosine(ONES, -1e-200 * ONES) == pytest.approx((-1, -1))
    assert metrics.cosine(1e200 * ONES, ONES) == pytest.approx((1, 1))
    for x, y in ((PLAIN, NAN), (INFINITE, PLAIN), (ZEROS[:0], ZEROS[:0])):
        assert all(math.isnan(value) for value in metrics.cosine(x, y))


def test_max_abs_error() -> None:
    assert metrics.max_abs_error(PLAIN, PLAIN + 0.5) == 0.5
    assert metrics.max_abs_error(INFINITE, INFINITE) == 0
    assert metrics.max_abs_error(INFINITE, -INFINITE) == math.inf
    assert metrics.max_abs_error(INFINITE, PLAIN) == math.inf
    assert math.isnan(metrics.max_abs_error(NAN, NAN))
    assert math.isnan(metrics.max_abs_error(ZEROS[:0], ZEROS[:0]))


def test_top1_agreement() -> None:
    a = np.array([[1.0, 2.0], [3.0, 1.0], [0.0, 5.0], [1.0, 0.0]])
    b = np.array([[0.0, 9.0], [1.0, 3.0], [math.nan, 5.0], [1.0, 1.0]])
    assert metrics.top1_agreement(a, b) == 0.5  # the tie goes to the first place
    assert metrics.top1_agreement(ONES, ZEROS) == 1
    assert math.isnan(metrics.top1_agreement(ZEROS[:0], ZEROS[:0]))


def test_accuracy() -> None:
    scores = np.array([[1.0, 2.0], [3.0, 1.0], [math.nan, 1.0], [0.0, 0.0]])
    assert metrics.accuracy(scores, np.array([1, 1, 0, 0])) == 0.5
    assert math.isnan(metrics.accuracy(np.zeros((0, 2)), np.zeros(0, int)))
    with pytest.raises(ValueError, match="labels"):
        metrics.accuracy(scores, np.array([1]))


def test_shapes_must_agree() -> None:
    for metric in (metrics.sqnr_db, metrics.cosine, metrics.max_abs_error, metrics.top1_agreement):
        with pytest.raises(ValueError, match="shapes"):
            metric(ZEROS, ZEROS[0])


def test_arrays_added_count_as_one() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 9, 4))
    tally = metrics.Similarity()
    for rows in (slice(0, 2), slice(2, 9)):
        tally.add(a[rows], b[rows])
    assert tally.sqnr_db == pytest.approx(metrics.sqnr_db(a, b))
    assert (tally.cosine_mean, tally.cosine_worst) == pytest.approx(metrics.cosine(a, b))
    assert tally.max_abs_error == metrics.max_abs_error(a, b)
    assert tally.top1_agreement == metrics.top1_agreement(a, b)
    errors = metrics.ErrorTally()
    for rows in (slice(0, 2), slice(2, 9)):
        errors.add(a[rows] - b[rows])
    assert errors.maximum == np.abs(a - b).max()
    assert errors.rms == pytest.approx(np.sqrt(np.square(a - b).mean()))


@pytest.mark.parametrize(
    ("arrays", "constant"),
    [
        ([ONES, ONES], True),
        ([PLAIN, PLAIN], True),  # the same row whatever the input
        ([PLAIN], False),  # one row shows nothing
        ([ZEROS[:1]], True),  # but for one of equal elements
        ([ONES[:1, :1]], False),
        ([ONES, 2 * ONES], False),
        ([ONES, np.ones((3, 5))], True),
        ([PLAIN, np.ones((3, 5))], False),
        ([np.float32(1).reshape(()), np.float32(2).reshape(())], False),
    ],
)
def test_variation(arrays: list[np.ndarray], constant: bool) -> None:
    variation = metrics.Variation()
    for array in arrays:
        variation.add(array)
    assert variation.constant is constant


def test_error_histogram() -> None:
    tally = metrics.ErrorHistogram()
    reference = np.full((3, 4), 100.0)
    reference[0, 0] = -1000  # the scale, known only when all have been added
    for row, error in zip(reference, [[0, 0, 2e-3, 2e-3], [2e-3, 0, 5, 0], [0] * 4], strict=True):
        tally.add(row[::-1], row[::-1] + np.array(error))
    histogram = tally.result()
    at = dict(zip(histogram.exponents, histogram.counts, strict=False))
    assert histogram.zeros == 8
    assert {e: count for e, count in at.items() if count} == {-6.0: 3, -2.5: 1}
    assert len(histogram.exponents) == len(histogram.counts) + 1


def test_error_histogram_at_the_ends() -> None:
    tally = metrics.ErrorHistogram()
    tally.add(ONES, ONES * [1 + 1e-19, 1e9, math.inf])  # a rounded, a huge, and one left out
    tally.add(INFINITE, INFINITE)
    tally.add(np.array([1.0]), np.array([1 + 2.0**-52]))
    counts = tally.result().counts
    assert counts[-1] == 2
    assert sum(counts) == 3
    assert counts[1] == 1  # 2.2e-16 of INFINITE's 3
    assert tally.result().zeros == 4
    nothing = metrics.ErrorHistogram()
    nothing.add(ZEROS, ZEROS + 1e-3)
    assert nothing.result().counts[28] == 6  # of a scale of 1 where all is zero
    huge = metrics.ErrorHistogram()
    huge.add(np.array([1e308]), np.array([-1e308]))
    assert huge.result().counts[-1] + huge.result().counts[-2] == 1
