"""The largest singular value of many small matrices.

Covers: LAPACK's values to the last digits, equal singular values included; the compiled way and
NumPy's, to the bit; matrices beside others and alone, to the bit; arrays that the compiled way
refuses; how many directions RDC has.
Does not cover: RDC (`test_kernels_measures.py`).
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpipe.kernels import spectrum
from dpipe.kernels.copula import BASIS, MOST_DIRECTIONS, PAIR_BASIS, feature_spans, orthonormal_span
from dpipe.kernels.marginals import marginal_sums, whitened
from dpipe.kernels.ranks import rank_column
from dpipe.kernels.spectrum import largest_square


def matrices(d: int, e: int, seed: int, spread: float) -> NDArray[np.float64]:
    """Matrices whose singular values are equal but for `spread`, zeros among them."""
    rng = np.random.default_rng(seed)
    equal = rng.choice([0.0, 1e-5, 0.3, 1.0]) * np.eye(d, e)
    equal[rng.random(d) < 0.2] = 0
    turns = np.linalg.qr(rng.standard_normal((2, 20, max(d, e), max(d, e))))[0]
    turned = turns[0, :, :d, :d] @ equal @ turns[1, :, :e, :e]
    return turned + spread * rng.standard_normal((20, d, e))


sizes = st.integers(1, 12)
seeds = st.integers(0, 2**32 - 1)
spreads = st.sampled_from([0.0, 1e-9, 1e-5, 1e-3, 1.0])


@given(sizes, sizes, seeds, spreads)
@example(11, 8, 133, 1e-9)  # first the zeros are parted from the rest, then the rest in itself
def test_spectrum__is_that_of_lapack(d: int, e: int, seed: int, spread: float) -> None:
    some = matrices(d, e, seed, spread)
    expected = np.linalg.svd(some, compute_uv=False)[:, 0] ** 2
    np.testing.assert_allclose(largest_square(some), expected, rtol=1e-12, atol=1e-28)


@given(sizes, sizes, seeds, spreads, st.sampled_from([np.float32, np.float64]))
def test_spectrum__compiled_is_numpy_to_the_bit(
    d: int, e: int, seed: int, spread: float, dtype: type
) -> None:
    if spectrum.compiled is None:
        pytest.skip("the spectrum is not compiled here")
    some = matrices(d, e, seed, spread).astype(dtype).reshape(4, 5, d, e).swapaxes(0, 1)
    compiled = largest_square(some)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectrum, "compiled", None)
        expected = largest_square(some)
    assert compiled.shape == expected.shape == (5, 4)
    np.testing.assert_array_equal(compiled, expected)


@given(sizes, sizes, seeds, spreads)
def test_spectrum__is_the_same_beside_other_matrices(
    d: int, e: int, seed: int, spread: float
) -> None:
    some = np.concatenate([matrices(d, e, seed, spread), matrices(d, e, seed, 1.0)])
    alone = np.concatenate([largest_square(one[None]) for one in some])
    np.testing.assert_array_equal(largest_square(some), alone)


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 3, 4), (1, 1, 1), (3, 13, 14)])
def test_spectrum__of_none_of_one_and_of_larger_ones(shape: tuple[int, ...]) -> None:
    some = np.random.default_rng(0).standard_normal(shape)
    expected = np.linalg.svd(some, compute_uv=False)[..., 0] ** 2
    np.testing.assert_allclose(largest_square(some), expected, rtol=1e-12)


def test_spectrum__compiled_refuses_other_arrays() -> None:
    if spectrum.compiled is None:
        pytest.skip("the spectrum is not compiled here")
    some, values = np.zeros((2, 3, 4)), np.zeros(2)
    spectrum.compiled.largest_squares(some, values)
    for arguments in (
        (some.astype(np.int64), values),
        (some[0], values),
        (some[:, :0], values),
        (np.zeros((2, 13, 13)), values),
        (some, values[:1]),
        (some, values.astype(np.float32)),
        (some[:, :, ::2], values),
    ):
        with pytest.raises((ValueError, BufferError)):
            spectrum.compiled.largest_squares(*arguments)
    values.setflags(write=False)
    with pytest.raises((ValueError, BufferError)):
        spectrum.compiled.largest_squares(some, values)


def test_directions__of_a_draw_are_never_more() -> None:
    rng = np.random.default_rng(0)
    rows = 500
    columns = [
        rng.standard_normal(rows),
        *(rng.integers(0, m, rows).astype(float) for m in range(2, 30)),
        *(rng.poisson(mean, rows).astype(float) for mean in np.geomspace(0.01, 20, 20)),
        *(np.maximum(rng.standard_normal(rows), cut) for cut in np.linspace(-2, 2, 9)),
        *(np.where(rng.random(rows) < share, 0, rng.random(rows)) for share in (0.5, 0.9, 0.99)),
    ]
    scores = np.stack([rank_column(column).scores for column in columns]).astype(float)
    loading = whitened(marginal_sums(scores, BASIS, None), None, PAIR_BASIS).loading
    for seed in range(20):
        for span in feature_spans(seed, 5, None):
            found = orthonormal_span(loading, span, PAIR_BASIS)
            live = (found != 0).any(axis=2).sum(axis=1)
            assert live.max() <= MOST_DIRECTIONS
