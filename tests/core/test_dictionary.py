from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse

from core import Dictionary, errors, scaling
from core.dictionary import ENCODE_TOL
from core.kernels.cpu.panels import width_of
from tests.core.problems import above_least, digits_split, excess, kkt_residual, nearly_dependent, planted


@pytest.fixture(scope="module")
def digits_dictionary() -> Dictionary:
    from core import NMF

    return Dictionary(NMF(64, seed=0, max_iter=30).fit(digits_split()[0])[1])


@pytest.mark.parametrize(("d", "k"), [(60, 20), (60, 60), (100, 150), (3, 1), (1, 4)])
def test_encode_is_exact(d: int, k: int) -> None:
    A, _, D = planted(60, d, k, seed=d + k)
    encoded = Dictionary(D).encode(A)
    assert bool(encoded.converged.all())
    assert float(encoded.kkt_residual.max()) <= ENCODE_TOL
    assert excess(A, encoded.codes, D).max() <= 1e-6
    assert kkt_residual(A, encoded.codes.numpy(), D).max() <= 5e-6


@pytest.mark.parametrize("seed", range(3))
def test_encode_is_exact_where_the_data_is_met_exactly(seed: int) -> None:
    """More concepts than features: the gram is singular, and nearly any support will do."""
    A, _, D = planted(60, 40, 120, seed=seed)
    encoded = Dictionary(D).encode(A)
    assert bool(encoded.converged.all())
    assert excess(A, encoded.codes, D).max() <= 1e-6


def test_few_rows_are_measured_before_they_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a device, which would be waited for to tell their largest values."""
    dictionary = Dictionary(np.eye(3, dtype=np.float32))
    done: list[str] = []
    exponents, copied = scaling.exponents_of, Dictionary._matrix
    monkeypatch.setattr("core.dictionary.exponents_of", lambda x: (done.append("measured"), exponents(x))[1])
    monkeypatch.setattr(Dictionary, "_matrix", lambda self, x: (done.append("copied"), copied(self, x))[1])
    codes = dictionary.encode(np.array([[1, 2, 3], [1e20, 0, 0]])).codes
    assert done == ["measured", "copied"]
    torch.testing.assert_close(codes, torch.tensor([[1.0, 2, 3], [1e20, 0, 0]]))


def in_panels(nb_concepts: int, itemsize: int) -> int:
    """Concepts that there is room for in their panels."""
    return -(-nb_concepts // width_of(itemsize)) * width_of(itemsize)


@pytest.mark.parametrize("held", [True, False])
def test_encode_is_exact_on_far_more_concepts_than_features(held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.dictionary.LARGEST_GRAM", 600 if held else 599)
    A, _, D = planted(20, 100, 600, density=0.02)
    dictionary = Dictionary(D)
    assert dictionary.nbytes == 4 * (600 * 100 + in_panels(600, 4) * 100 + held * 600 * 600 + 600)
    encoded = dictionary.encode(A)
    assert bool(encoded.converged.all())
    assert excess(A, encoded.codes, D).max() <= 1e-6
    assert kkt_residual(A, encoded.codes.numpy(), D).max() <= 1.5e-6


@settings(max_examples=60)
@given(
    d=st.integers(1, 40),
    k=st.integers(1, 90),
    rank=st.integers(1, 40),
    repeated=st.integers(0, 10),
    zeros=st.integers(0, 3),
    noise=st.sampled_from([0.0, 0.05, 1.0]),
    double=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_dictionary(
    d: int, k: int, rank: int, repeated: int, zeros: int, noise: float, double: bool, seed: int
) -> None:
    """Repeated, zero and dependent concepts, or more than features: the minimum is reached, or it is told."""
    A, Z, D = planted(4, d, k, noise=noise, seed=seed)
    if rank < min(d, k):
        D = planted(k, d, rank, noise=0, seed=seed)[0]
        A = Z @ D + noise * A
    D[: min(repeated, k // 2)] = D[k - min(repeated, k // 2) :]
    D[k // 2 : k // 2 + zeros] = 0
    encoded = Dictionary(D, dtype=torch.float64 if double else torch.float32).encode(A)
    assert bool((encoded.codes >= 0).all())
    assert bool((encoded.codes[:, ~D.any(axis=1)] == 0).all())
    assert torch.equal(encoded.converged, encoded.kkt_residual <= (1e-12 if double else 1e-6))
    done = encoded.converged.numpy() & A.any(axis=1)
    if done.any():
        assert kkt_residual(A[done], encoded.codes.numpy()[done], D).max() <= 2e-6
    # where concepts span fewer dimensions than they could, or nearly, a gram in float32 can hardly tell them apart
    singular = np.linalg.svd(D.astype(float), compute_uv=False)
    if singular[-1] < 0.01 * singular[0]:
        return
    assert bool(encoded.converged.all())
    if done.any():
        assert excess(A[done], encoded.codes[done], D).max() <= 1e-6


@pytest.mark.parametrize(("k", "d"), [(48, 100), (128, 128), (120, 70), (300, 120)])
@pytest.mark.parametrize("kind", ["smooth", "of low rank", "nearly one", "copies"])
def test_concepts_that_nearly_depend_on_each_other(kind: str, k: int, d: int) -> None:
    """What float32 cannot tell apart ends in float64: every row arrives, and is as good as SciPy's to a millionth."""
    A, D = nearly_dependent(kind, k, d)
    dictionary = Dictionary(D)
    encoded = dictionary.encode(A)
    assert bool(encoded.converged.all())
    assert bool((encoded.codes >= 0).all())
    assert torch.equal(encoded.codes[3:5], dictionary.encode(A[3:5]).codes)
    assert above_least(A[:10], encoded.codes[:10], D).max() <= 1e-6
    if kind == "smooth":  # which float64 settles throughout
        assert excess(A[:10], encoded.codes[:10], D).max() <= 2e-6
    in_float64 = Dictionary(D, dtype=torch.float64).encode(A[:10])  # what is left to who wants the least loss itself
    assert excess(A[:10], in_float64.codes, D).max() <= 1e-6


@pytest.mark.parametrize("k", [128, 192, 256, 300])
@pytest.mark.parametrize("width", [1.5, 1.8, 2.5])
def test_concepts_whose_gram_float32_cannot_factor(k: int, width: float) -> None:
    """Each of the factor's pivots is something, and yet a step by it leads as far as float32 goes, and to NaN."""
    at = np.linspace(0, 1, k)[:, None] - np.linspace(0, 1, 2 * k)
    D = np.exp(-(at**2) / (2 * (width / (k - 1)) ** 2)).astype(np.float32)
    A = (np.random.default_rng(0).exponential(size=(9, k)) @ D).astype(np.float32)
    encoded = Dictionary(D).encode(A)
    assert bool(encoded.converged.all())
    assert float(encoded.codes.max()) < 20
    assert kkt_residual(A, encoded.codes.numpy(), D).max() < 1e-6
    assert torch.equal(encoded.codes[7:8], Dictionary(D).encode(A[7:8]).codes)


def test_float64_gives_up_on_a_row_where_it_was_best() -> None:
    """Of more narrow concepts than features it seldom reaches what is asked for, and it is not to wander off."""
    at = np.linspace(0, 1, 300)[:, None] - np.linspace(0, 1, 30)
    D = np.exp(-(at**2) / (2 * 0.02**2))
    A = np.random.default_rng(1).random((40, 30))
    encoded = Dictionary(D, dtype=torch.float64).encode(A)
    assert kkt_residual(A, encoded.codes.numpy(), D).max() < 1e-7


@pytest.mark.parametrize(
    "wrong", [{"max_iter": 2.5}, {"max_iter": "3"}, {"max_iter": True}, {"max_iter": 0}, {"tol": "x"}, {"tol": -1.0}]
)
def test_parameters_of_an_encode_are_checked(wrong: dict[str, Any]) -> None:
    A, _, D = planted(2, 8, 3)
    with pytest.raises(errors.InvalidParameter, match=next(iter(wrong))):
        Dictionary(D).encode(A, **wrong)


def test_a_tolerance_that_float32_does_not_reach_ends() -> None:
    """After rounds that gain nothing, and not after all that are allowed."""
    A, D = nearly_dependent("smooth", 300, 120, rows=4)
    assert not bool(Dictionary(D).encode(A, tol=1e-10, max_iter=10**9).converged.any())


def test_encode_is_exact_on_digits(digits_dictionary: Dictionary) -> None:
    A = digits_split()[1][:100]
    encoded = digits_dictionary.encode(A)
    assert bool(encoded.converged.all())
    assert excess(A, encoded.codes, digits_dictionary.D.numpy()).max() <= 1e-6


@pytest.mark.parametrize("held", [True, False])
def test_a_row_does_not_depend_on_its_batch_where_concepts_outnumber_features(
    held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in hand together share the reading of D, and nothing else; with the gram or without."""
    if not held:
        monkeypatch.setattr("core.dictionary.LARGEST_GRAM", 0)
    A, _, D = planted(70, 60, 400, density=0.02, seed=3)
    dictionary = Dictionary(D)
    together = dictionary.encode(A)
    done = together.converged.numpy()  # a support of nearly as many as features may not reach 1e-6 in float32
    assert done.mean() > 0.9
    assert excess(A[done], together.codes[done], D).max() <= 1e-6
    assert kkt_residual(A[done], together.codes.numpy()[done], D).max() <= 2e-6
    assert torch.equal(together.codes.flip(0), dictionary.encode(A[::-1].copy()).codes)
    for i in range(0, 70, 9):
        assert torch.equal(together.codes[i : i + 1], dictionary.encode(A[i : i + 1]).codes)


def test_a_row_does_not_depend_on_its_batch_nor_on_history(digits_dictionary: Dictionary) -> None:
    A = np.ascontiguousarray(np.concatenate(digits_split())[:1000])
    together = digits_dictionary.encode(A).codes
    alone = torch.cat([digits_dictionary.encode(A[i : i + 1]).codes for i in range(0, 1000, 20)])
    assert torch.equal(together[::20], alone)
    assert torch.equal(together, digits_dictionary.encode(A).codes)
    assert torch.equal(together.flip(0), digits_dictionary.encode(A[::-1].copy()).codes)


@pytest.mark.parametrize("k", [120, 5000])
def test_a_row_of_many_concepts_does_not_depend_on_its_batch(k: int) -> None:
    """Where the working set is used, with the gram and without it."""
    A, _, D = planted(400 if k == 120 else 60, 40, k, density=20 / k)
    dictionary = Dictionary(D)
    together = dictionary.encode(A).codes
    alone = torch.cat([dictionary.encode(A[i : i + 1]).codes for i in range(0, len(A), 7)])
    assert torch.equal(together[::7], alone)
    assert torch.equal(together, Dictionary(D).encode(A).codes)
    assert torch.equal(together[:13], dictionary.encode(A[:13]).codes)


def test_a_row_does_not_depend_on_a_row_of_extraordinary_size_beside_it() -> None:
    """Which is solved in units of its own: no other row is."""
    random = np.random.default_rng(0)
    D, Z = (random.random(shape) * (random.random(shape) < 0.2) for shape in ((700, 33), (60, 700)))
    A = (np.logspace(-5, 5, 60)[:, None] * (Z @ D)).astype(np.float32)
    dictionary = Dictionary(D)
    beside = dictionary.encode(np.concatenate([A, A[:1] * np.float32(1e-20)])).codes
    assert torch.equal(beside[:60], dictionary.encode(A).codes)


def test_float64_on_request() -> None:
    A, _, D = planted(30, 60, 40)
    A, D = A.astype(np.float64) / 3, D.astype(np.float64) / 3
    dictionary = Dictionary(D, dtype=torch.float64)
    encoded = dictionary.encode(A)
    assert {encoded.codes.dtype, encoded.kkt_residual.dtype, dictionary.decode(encoded.codes).dtype} == {
        torch.float64
    }
    assert bool(encoded.converged.all())
    assert kkt_residual(A, encoded.codes.numpy(), D).max() <= 2e-12
    assert dictionary.nbytes == 8 * (40 * 60 + in_panels(40, 8) * 60 + 40 * 40 + 40)
    single = Dictionary(D).encode(A).codes
    torch.testing.assert_close(single.double(), encoded.codes, rtol=1e-3, atol=1e-5 * float(single.max()))
    with pytest.raises(errors.InvalidParameter, match="float16"):
        Dictionary(D, dtype=torch.float16)


@pytest.mark.parametrize(("d", "k"), [(50, 40), (40, 300)])
def test_one_sweep_is_told_not_to_be_enough(d: int, k: int) -> None:
    A, _, D = planted(20, d, k)
    encoded = Dictionary(D).encode(A, max_iter=1)
    assert not bool(encoded.converged.any())
    np.testing.assert_allclose(encoded.kkt_residual.numpy(), kkt_residual(A, encoded.codes.numpy(), D), rtol=1e-2)


@settings(max_examples=60)
@given(a=st.integers(-60, 60), b=st.integers(-60, 60), mixed=st.booleans(), seed=st.integers(0, 1000))
def test_any_scale(a: int, b: int, mixed: bool, seed: int) -> None:
    """Codes of 2^a·A on 2^b·D are 2^(a−b) times those of A on D, from 1e-18 to 1e18, mixed within A and D too."""
    A, _, D = planted(6, 20, 12, seed=seed)
    rows = 2.0 ** (a * (np.arange(6) % 2 if mixed else np.ones(6)))
    concepts = 2.0 ** (b * (np.arange(12) % 2 if mixed else np.ones(12)))
    scaled_A, scaled_D = (A * rows[:, None]).astype(np.float32), (D * concepts[:, None]).astype(np.float32)
    encoded = Dictionary(scaled_D).encode(scaled_A)
    plain = Dictionary(D).encode(A)
    assert bool(encoded.converged.all())
    expected = plain.codes.double().numpy() * rows[:, None] / concepts
    np.testing.assert_allclose(
        encoded.codes.numpy(), expected, rtol=2e-3, atol=1e-4 * expected.max(axis=0, initial=0).min()
    )
    decoded = Dictionary(scaled_D).decode(encoded.codes).double().numpy() / rows[:, None]
    np.testing.assert_allclose(decoded, (plain.codes @ torch.from_numpy(D)).numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("a", "b"), [(1e30, 1e30), (1e-30, 1e-30), (1e30, 1e10), (1e-30, 1e-10), (1e37, 1), (1e-37, 1)]
)
def test_extremes(a: float, b: float) -> None:
    A, _, D = planted(6, 20, 12)
    A, D = A / A.max(), D / D.max()
    encoded = Dictionary((D * b).astype(np.float32)).encode((A * a).astype(np.float32))
    assert bool(encoded.converged.all())
    plain = Dictionary(D).encode(A).codes.double()
    torch.testing.assert_close(encoded.codes.double() * (b / a), plain, rtol=1e-3, atol=1e-4)


def test_codes_beyond_float32_are_an_error_not_infinity() -> None:
    A, _, D = planted(2, 8, 3)
    with pytest.raises(errors.OutOfRange, match=r"the codes of a row .* would exceed"):
        Dictionary(D * np.float32(1e-30)).encode(A * np.float32(1e30))
    with pytest.raises(errors.OutOfRange, match=r"the activations of a row .* would exceed"):
        Dictionary(D * np.float32(1e30)).decode(np.full((1, 3), 1e30, np.float32))


def test_the_row_whose_codes_are_too_large_is_told_by_its_values() -> None:
    A = np.float32([[1e-10, 1e-10], [1e-3, 1], [1e30, 1]])
    with pytest.raises(errors.OutOfRange, match=r"a row whose activations reach 1e\+30 .*dtype=float64"):
        Dictionary(np.eye(2, dtype=np.float32) * np.float32(1e-30)).encode(A)


@pytest.mark.parametrize("values", [(1e-26, 1e-26), (1e-25, 2e-25)])
def test_codes_that_float32_cannot_tell_have_not_converged(values: tuple[float, float]) -> None:
    D = np.eye(2, dtype=np.float32) * np.float32(1e20)
    encoded = Dictionary(D).encode(np.float32([values, (1e20, 0), (0, 0), (1e-10, 1e-15)]))
    assert encoded.converged.tolist() == [False, True, True, True]
    assert float(encoded.kkt_residual[0]) > 0.1
    exact = Dictionary(D, dtype=torch.float64).encode(np.float64([values]))
    assert bool(exact.converged.all())


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e-5, 1e-4, 1e-2, 1])
def test_what_is_told_covers_codes_that_are_lost_beside_large_ones(size: float) -> None:
    """A code of a small concept may be large, and that of a large one too small for float32."""
    D = np.diag(np.float32([1e-6, 3e38, 1]))
    D[2, :2] = 1e-6, 1e38
    A = np.float32([[size, size, size]])
    encoded = Dictionary(D).encode(A)
    units = np.linalg.norm(D.astype(float), axis=1)
    true = kkt_residual(A / size, encoded.codes.double().numpy() * units / size, D / units[:, None])
    assert true[0] <= float(encoded.kkt_residual[0]) + 2e-7
    assert bool(encoded.converged[0]) == (float(encoded.kkt_residual[0]) <= ENCODE_TOL)


@pytest.mark.parametrize(
    ("concepts", "rows"),
    [
        ([[1, 0.5], [0.2, 1]], [[1, 1], [1e-310, 2e-310]]),
        ([[1, 0], [0, 1e-160]], [[1e150, 0]]),
        ([[1e300, 0], [0, 1e-300]], [[1e-5, 1e-305], [1e300, 0]]),
    ],
)
def test_float64_has_all_of_its_range(concepts: list[list[float]], rows: list[list[float]]) -> None:
    D, A = np.array(concepts), np.array(rows)
    dictionary = Dictionary(D, dtype=torch.float64)
    encoded = dictionary.encode(A)
    assert bool(encoded.converged.all())
    np.testing.assert_allclose(encoded.codes.numpy(), A @ np.linalg.inv(D), rtol=1e-9)
    np.testing.assert_allclose(dictionary.decode(encoded.codes).numpy(), A, rtol=1e-9)


def test_float64_codes_that_are_lost_have_not_converged() -> None:
    encoded = Dictionary(np.eye(2) * 1e200, dtype=torch.float64).encode(np.array([[1e-150, 1e-150]]))
    assert not bool(encoded.converged.any())
    assert float(encoded.kkt_residual[0]) >= 0.7


@pytest.mark.parametrize(
    ("concepts", "codes", "rows"),
    [
        ([[1e30, 0], [0, 1e-30]], [[1e-30, 1e30], [1e-30, 0], [0, 0]], [[1, 1], [1, 0], [0, 0]]),
        ([[3e38], [3e38]], [[1e-30, 1e-30]], [[6e8]]),
        ([[1e-42, 3e-42]], [[1e30]], [[1.0005e-12, 3.0002e-12]]),  # as near as subnormal numbers are
    ],
)
def test_decode_where_concepts_are_of_extraordinary_size(
    concepts: list[list[float]], codes: list[list[float]], rows: list[list[float]]
) -> None:
    decoded = Dictionary(np.float32(concepts)).decode(np.float32(codes))
    np.testing.assert_allclose(decoded.numpy(), rows, rtol=1e-4)


def test_float64_given_to_float32_is_brought_into_its_range_first() -> None:
    dictionary = Dictionary(np.eye(2) * 1e30)
    encoded = dictionary.encode(np.array([[1e50, 1e45], [1e-90, 0]]))
    np.testing.assert_allclose(encoded.codes[0].numpy(), [1e20, 1e15], rtol=1e-6)
    assert encoded.converged.tolist() == [True, False]
    with pytest.raises(errors.OutOfRange, match=r"activations reach 1e\+300 would exceed"):
        dictionary.encode(np.array([[1e300, 1]]))
    with pytest.raises(errors.OutOfRange, match=r"codes reach 1e\+300 would exceed"):
        dictionary.decode(np.array([[1e300, 1]]))
    np.testing.assert_allclose(Dictionary(np.eye(2) * 1e-30).decode(np.array([[1e60, 0]])).numpy(), [[1e30, 0]], 1e-6)


def test_zero_rows_and_zero_concepts() -> None:
    A, _, D = planted(5, 20, 6)
    A[2], D[1] = 0, 0
    encoded = Dictionary(D).encode(A)
    assert bool((encoded.codes[2] == 0).all())
    assert bool((encoded.codes[:, 1] == 0).all())
    assert float(encoded.kkt_residual[2]) == 0
    assert bool(encoded.converged.all())
    nothing = Dictionary(np.zeros((3, 20), np.float32)).encode(A)
    assert bool((nothing.codes == 0).all())
    assert bool(nothing.converged.all())


def test_decode() -> None:
    _, Z, D = planted(7, 20, 6)
    np.testing.assert_allclose(Dictionary(D).decode(Z).numpy(), Z.astype(float) @ D, rtol=1e-5)


@settings(max_examples=25)
@given(d=st.integers(20, 60), k=st.integers(1, 15), scale=st.integers(-20, 20), seed=st.integers(0, 1000))
def test_codes_come_back_from_what_they_decode_to(d: int, k: int, scale: int, seed: int) -> None:
    """Where concepts are independent, no other codes give the same activations."""
    _, Z, D = planted(5, d, k, seed=seed)
    singular = np.linalg.svd(D, compute_uv=False)
    assume(singular[-1] > 0.05 * singular[0])  # which few concepts mostly are, but for one that is zero
    dictionary, Z = Dictionary(D), Z * np.float32(2.0**scale)
    encoded = dictionary.encode(dictionary.decode(Z))
    assert bool(encoded.converged.all())
    np.testing.assert_allclose(encoded.codes.numpy(), Z, rtol=1e-3, atol=1e-3 * Z.max(initial=0))


@settings(max_examples=25)
@given(k=st.integers(1, 40), a=st.floats(0, 100), b=st.floats(0, 100), seed=st.integers(0, 1000))
def test_decode_is_linear(k: int, a: float, b: float, seed: int) -> None:
    _, Z, D = planted(8, 20, k, seed=seed)
    dictionary = Dictionary(D)
    apart = a * dictionary.decode(Z[:4]) + b * dictionary.decode(Z[4:])
    together = dictionary.decode((a * Z[:4] + b * Z[4:]).astype(np.float32))
    atol = 1e-4 * float(apart.max()) + torch.finfo(torch.float32).tiny
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=atol)


def test_parameters_are_checked() -> None:
    dictionary = Dictionary(np.eye(3, dtype=np.float32))
    for tol in (0, -1, float("nan")):
        with pytest.raises(errors.InvalidParameter, match="tol"):
            dictionary.encode(torch.ones(1, 3), tol=tol)
    with pytest.raises(errors.InvalidParameter, match="max_iter"):
        dictionary.encode(torch.ones(1, 3), max_iter=0)


@pytest.mark.parametrize("shape", [(2000, 20), (2000, 4000), (0, 100), (100,)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    dictionary = Dictionary(np.ones((300, 100), np.float32))
    with pytest.raises(errors.WrongShape, match="activations"):
        dictionary.encode(np.ones(shape, np.float32))
    with pytest.raises(errors.WrongShape, match="codes"):
        dictionary.decode(np.ones(shape, np.float32))
    with pytest.raises(errors.WrongShape, match="concepts"):
        Dictionary(np.ones((0, 100)))


def test_it_is_what_it_says_and_keeps_its_own_copy() -> None:
    D = torch.rand(30, 50)
    dictionary = Dictionary(D)
    assert (dictionary.nb_concepts, dictionary.n_features, dictionary.device) == (30, 50, torch.device("cpu"))
    assert dictionary.nbytes == 4 * (30 * 50 + in_panels(30, 4) * 50 + 30 * 30 + 30)
    before = dictionary.encode(torch.ones(1, 50)).codes
    D.zero_()
    assert torch.equal(dictionary.encode(torch.ones(1, 50)).codes, before)
    assert dictionary.encode(torch.ones(1, 50, dtype=torch.float64)).codes.dtype == torch.float32


TURNS = (lambda x: x.astype(">f4"), lambda x: x[:, ::-1], lambda x: x[::-1], np.asfortranarray)


@pytest.mark.parametrize("turned", TURNS)
def test_arrays_lie_in_memory_as_they_may(turned: Callable[[np.ndarray], np.ndarray]) -> None:
    random = np.random.default_rng(0)
    D, A = random.random((5, 8), np.float32), random.random((7, 8), np.float32)
    dictionary = Dictionary(turned(D))
    codes = dictionary.encode(turned(A)).codes
    ordinary = Dictionary(turned(D).astype("<f4", order="C"))
    assert torch.equal(codes, ordinary.encode(turned(A).astype("<f4", order="C")).codes)
    Z = turned(codes.numpy())
    assert torch.equal(dictionary.decode(Z), ordinary.decode(Z.astype("<f4", order="C")))


@pytest.mark.parametrize("tol", [np.float32(1e-4), np.float64(1e-4), np.float16(1e-4), 1])
def test_a_tolerance_may_be_a_number_of_any_kind(tol: float) -> None:
    A = np.random.default_rng(0).random((3, 8), np.float32)
    assert Dictionary(A[:2]).encode(A, tol=tol).codes.shape == (3, 2)
    with pytest.raises(errors.InvalidParameter, match="tol is True"):
        Dictionary(A[:2]).encode(A, tol=True)


@pytest.mark.parametrize(
    "bad", [np.ones((2, 3), complex), torch.ones(2, 3, dtype=torch.complex64), np.array([["a"]])]
)
def test_only_real_numbers_are_read(bad) -> None:  # type: ignore[no-untyped-def]
    dictionary = Dictionary(np.ones((3, 3)))
    for read in (Dictionary, dictionary.encode, dictionary.decode):
        with pytest.raises(errors.WrongDtype, match="dtype"):
            read(bad)
    with pytest.raises(errors.InvalidParameter, match="tol"):
        dictionary.encode(np.ones((1, 3)), tol=10**400)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.ma.masked_greater(np.eye(3), 0.5), r"a masked array; pass x.filled\(0\)"),
        (torch.eye(3).to_sparse(), "sparse, which NMF takes"),
        (sparse.csr_array(np.eye(3)), "sparse, which NMF takes"),
    ],
)
def test_masked_and_sparse_ones_are_refused(bad, words: str) -> None:  # type: ignore[no-untyped-def]
    dictionary = Dictionary(np.ones((3, 3)))
    for read in (Dictionary, dictionary.encode, dictionary.decode):
        with pytest.raises(errors.WrongDtype, match=words):
            read(bad)
