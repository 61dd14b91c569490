"""Where a fit starts: Z and D for activations of any shape and rank, repeatable by seed.

Starts are generators that yield after each bounded slice of work and return (Z, D).
"""

from collections.abc import Callable, Generator

import numpy as np
import torch

from core import kernels
from core.chunks import Chunks, chunk_size, slices
from core.errors import OutOfRange
from core.kernels.precision import Precision, product
from core.scaling import one_where_zero, unit_concepts
from core.statistics import Statistics, add_cross_product

Start = Generator[None, None, tuple[torch.Tensor, torch.Tensor]]

# Singular vectors beyond this many describe noise as a rule and cost k³; the concepts beyond start as data rows.
MOST_COMPONENTS = 256
# Passes of subspace iteration: one more sharpens vectors that the first iterations of the fit change anyway.
POWER_PASSES = 2
# Zeros are filled with this share of √(mean(A)/k), in rows and features that are like the mean: enough to grow from,
# too little to blur the vectors.
FILL_SHARE = 0.1
# What is below this share of the fill is zero but for rounding, which no two ways of computing A·x have in common.
ZERO_SHARE = 1e-3
# Singular values below this share of the largest are the rounding of A·x in float32, which comes to some 2e-8 of it.
# Those of ordinary features lie little above, where one has values ten thousand times theirs; and each pass finds
# what is far below what the one before has found, for Q is orthogonal to that.
RANK_SHARE = 1e-6
# A factor that is solved for on its own, from zero: at most so many sweeps, fewer where their squared progress has
# fallen to this share of the first's.
SWEEPS, PROGRESS_RATIO = 200, 1e-10
# Rows of A whose random codes are drawn together, from a seed of their own, so that they are the same whichever rank
# has them and in however many chunks it reads them.
RANDOM_ROWS = 256


def random(chunks: Chunks, generator: torch.Generator) -> Start:
    """|N(0, 1)|·√(mean(A)/k) everywhere, so that Z·D has about the mean of A."""
    nb_concepts, device = chunks.nb_concepts, chunks.A.device
    scale = (chunks.mean / nb_concepts) ** 0.5
    D = _normal(nb_concepts, chunks.n_features, generator).abs_().mul_(scale).to(device)
    chunks.ranks.broadcast(D)
    seed = int(torch.randint(2**62, (), generator=generator))
    first, _ = chunks.ranks.offset_and_total(chunks.n_rows)
    end = first + chunks.n_rows
    Z = torch.empty(chunks.n_rows, nb_concepts, dtype=torch.float32, device=device)
    for block in range(first // RANDOM_ROWS, -(-end // RANDOM_ROWS)):
        begin = block * RANDOM_ROWS
        here = slice(max(first, begin), min(end, begin + RANDOM_ROWS))
        drawn = _normal(RANDOM_ROWS, nb_concepts, _seeded(seed, block))[here.start - begin : here.stop - begin]
        Z[here.start - first : here.stop - first] = drawn.abs_().mul_(scale)
        yield
    return Z, D


def _normal(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.float32, device="cpu", generator=generator)


def _seeded(seed: int, block: int) -> torch.Generator:
    """A generator for one of many blocks; those of neighbours have nothing in common."""
    mixed = np.random.SeedSequence((seed, block)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


def nndsvda(chunks: Chunks, generator: torch.Generator) -> Start:
    """Non-negative double SVD, its zeros filled (Boutsidis & Gallopoulos 2008), by randomised subspace iteration.

    Of each singular pair the larger of the two non-negative halves is kept (Halko, Martinsson & Tropp 2011 for the
    pairs). Two deviations: zeros are filled with 0.1·√(mean(A)/k) rather than mean(A), times the mean of the row or
    feature over that of A, so that Z·D, not Z and D each, is of the size of A, and of each part of it; and concepts
    beyond the rank (or beyond 256) start as data rows, so that any shape will do.
    """
    d, nb_concepts = chunks.n_features, chunks.nb_concepts
    device, ranks = chunks.A.device, chunks.ranks
    components = min(nb_concepts, chunks.all_rows, d, MOST_COMPONENTS)
    Z = torch.empty(chunks.n_rows, nb_concepts, dtype=torch.float32, device=device)
    of_rows, of_features = yield from _fills(chunks)

    Q = _normal(d, components, generator).to(device)
    for _ in range(POWER_PASSES):
        Y = torch.zeros(d, components, dtype=torch.float64, device=device)
        for _, block in chunks:
            projected = product(block, Q, Precision.FLOAT32)
            add_cross_product(block, projected, Y)
            yield
        ranks.all_sum(0, Y)
        Q = torch.linalg.qr(Y)[0].float()
        ranks.broadcast(Q)
        yield

    # A·Q is kept in Z's place; its gram gives the singular values, and the rotation to left vectors in place
    gram = torch.zeros(components, components, dtype=torch.float64, device=device)
    for rows, block in chunks:
        projected = product(block, Q, Precision.FLOAT32)
        Z[rows, :components] = projected
        add_cross_product(projected, projected, gram)
        yield
    ranks.all_sum(0, gram)
    squares, rotation = torch.linalg.eigh(gram)
    ranks.broadcast(squares, rotation)
    squares, rotation = squares.flip(0).clamp(min=0), rotation.flip(1).float()
    rank = int((squares > RANK_SHARE**2 * squares[0]).sum())
    V = product(Q, rotation[:, :rank], Precision.FLOAT32).T
    yield

    halves = torch.zeros(2, rank, dtype=torch.float64, device=device)  # ‖u₊‖², ‖u₋‖² of u = A·v
    for rows in chunks.slices():
        U = product(Z[rows, :components], rotation[:, :rank], Precision.FLOAT32)
        Z[rows, :rank] = U
        halves[0] += U.clamp(min=0).square().sum(dim=0)
        halves[1] += U.clamp(max=0).square().sum(dim=0)
        yield

    ranks.all_sum(0, halves)
    u_norms = halves.sqrt().float()
    v_norms = torch.stack([V.clamp(min=0).norm(dim=1), V.clamp(max=0).norm(dim=1)])
    size = u_norms * v_norms
    sign = torch.where(size[0] >= size[1], 1.0, -1.0)
    chosen = (sign < 0).long()[None]
    u_norm, v_norm, size = (x.gather(0, chosen)[0] for x in (u_norms, v_norms, size))
    D = torch.empty(nb_concepts, d, dtype=torch.float32, device=device)
    D[:rank] = (V * sign[:, None]).clamp(min=0) * (size.sqrt() / v_norm)[:, None]
    D[rank:] = _data_rows(chunks, torch.nonzero(of_rows > 0)[:, 0], nb_concepts - rank, generator)
    yield
    ranks.broadcast(D, sign, size, u_norm)
    _fill(D, of_features)
    for rows in chunks.slices():
        z = Z[rows]
        z[:, :rank] *= sign * (size.sqrt() / u_norm)
        z[:, rank:] = 0
        _fill(z, of_rows[rows, None])
        yield
    return Z, D


def _fills(chunks: Chunks) -> Generator[None, None, tuple[torch.Tensor, torch.Tensor]]:
    """What zeros of Z are filled with in each row, (n,), and those of D in each feature, (d,).

    In proportion to the row's or feature's mean: one with values a thousand times the others' raises the mean of A,
    and what is little beside that would drown the others.
    """
    longest = max(chunks.n_features, min(chunks.size, chunks.n_rows))
    ones = torch.ones(longest, 1, dtype=torch.float32, device=chunks.A.device)
    of_rows = torch.empty(chunks.n_rows, dtype=torch.float32, device=chunks.A.device)
    of_features = torch.zeros(chunks.n_features, dtype=torch.float64, device=chunks.A.device)
    for rows, block in chunks:
        of_rows[rows] = product(block, ones[: chunks.n_features], Precision.FLOAT32)[:, 0]
        of_features += product(block.T, ones[: rows.stop - rows.start], Precision.FLOAT32)[:, 0]
        yield
    chunks.ranks.all_sum(0, of_features)
    share = FILL_SHARE / (chunks.mean * chunks.nb_concepts) ** 0.5
    return of_rows * (share / chunks.n_features), (of_features * (share / chunks.all_rows)).float()


def _fill(x: torch.Tensor, fill: torch.Tensor) -> None:
    """What is zero but for rounding, in place."""
    x.copy_(torch.where(x <= ZERO_SHARE * fill, fill, x))


# Each takes chunks that have been surveyed, of an A that is not all zero.
STARTS: dict[str, Callable[[Chunks, torch.Generator], Start]] = {"nndsvda": nndsvda, "random": random}
DEFAULT_START = "nndsvda"


def given(chunks: Chunks, Z: torch.Tensor | None, D: torch.Tensor | None) -> Start:
    """A start from given factors of the right shape, in copies: Z (n, k), D (k, d) or both.

    One that is missing is the best for the other, its zeros filled as in `nndsvda`. Where the one that is given has
    nothing of a concept the other gets nothing either: filled alike, such concepts would stay alike in updates that
    treat them so, while what is zero is revived. Concepts that are given get norm one, and Z is taken to those units.

    Raises:
        OutOfRange: Z in those units exceeds float32.
    """
    of_rows, of_features = yield from _fills(chunks)
    if D is None:
        assert Z is not None  # noqa: S101 - one of the two is given
        norms = _column_norms(chunks, Z)
        Z = yield from _scaled(chunks, Z, 1 / one_where_zero(norms))
        D = yield from concepts_for(chunks, Z)
        _fill(D, of_features)
        D[norms == 0] = 0
        return Z, D
    norms, D = unit_concepts(D)
    chunks.ranks.broadcast(D, norms)
    if Z is None:
        Z = yield from codes_for(chunks, D)
        _fill(Z, of_rows[:, None])
        Z[:, norms == 0] = 0
    else:
        Z = yield from _scaled(chunks, Z, norms * 2.0**-chunks.exponent)
    return Z, D


def codes_for(chunks: Chunks, D: torch.Tensor) -> Generator[None, None, torch.Tensor]:
    """The best Z (n, k) for a given D (k, d), nearly; where each row starts from is zero."""
    Z = torch.zeros(chunks.n_rows, len(D), dtype=torch.float32, device=D.device)
    B = product(D, D.T, Precision.FLOAT32)
    inverse = kernels.inverse_diagonal(B)
    for rows, block in chunks:
        G = -product(block, D.T, Precision.FLOAT32)
        kernels.descend(Z[rows], G, B, inverse, max_sweeps=SWEEPS, progress_ratio=PROGRESS_RATIO)
        yield
    return Z


def concepts_for(chunks: Chunks, Z: torch.Tensor) -> Generator[None, None, torch.Tensor]:
    """The best D (k, d) for a given Z (n, k), nearly: the same problem transposed."""
    d, k = chunks.n_features, Z.shape[1]
    statistics = Statistics.zeros(d, k, Z.device)
    for rows, block in chunks:
        statistics.add(block, Z[rows])
        yield
    chunks.ranks.all_sum(0, statistics.gram, statistics.cross)
    concepts = torch.zeros(d, k, dtype=torch.float32, device=Z.device)
    G, B = -statistics.cross.float(), statistics.gram.float()
    inverse = kernels.inverse_diagonal(B)
    for features in slices(d, chunk_size(0, k, Z.device)):
        kernels.descend(concepts[features], G[features], B, inverse, max_sweeps=SWEEPS, progress_ratio=PROGRESS_RATIO)
        yield
    chunks.ranks.broadcast(concepts)
    return concepts.T.contiguous()


def _scaled(chunks: Chunks, Z: torch.Tensor, scales: torch.Tensor) -> Generator[None, None, torch.Tensor]:
    """A copy of Z (n, k), its columns multiplied by `scales`, float64 (k,)."""
    scaled = torch.empty_like(Z)
    for rows in chunks.slices():
        scaled[rows] = Z[rows].double() * scales
        yield
    if chunks.ranks.any_rank(not all_finite(scaled)):
        raise OutOfRange(
            "the given Z and D multiply to values beyond float32; pass a Z and D whose product is near A"
        )
    return scaled


def _column_norms(chunks: Chunks, Z: torch.Tensor) -> torch.Tensor:
    """Of Z (n, k), float64 (k,)."""
    norms: torch.Tensor = torch.linalg.vector_norm(Z, dim=0, dtype=torch.float64)
    if chunks.ranks.size == 1:
        return norms
    squares = norms.square()
    chunks.ranks.all_sum(0, squares)
    return squares.sqrt()


def all_finite(Z: torch.Tensor) -> bool:
    """Whether non-negative codes are."""
    return len(Z) == 0 or bool(torch.isfinite(Z.amax()))


def _data_rows(chunks: Chunks, candidates: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` of the candidates, evenly spread from a random one on; noise tells repeated ones apart."""
    if count == 0:
        return torch.empty(0, chunks.n_features, dtype=torch.float32, device=chunks.A.device)
    before, total = chunks.ranks.offset_and_total(len(candidates))
    first = int(torch.randint(total, (), generator=generator))
    step = max(1, total // count)
    wanted = (first + step * torch.arange(count, device="cpu")) % total - before
    here = (wanted >= 0) & (wanted < len(candidates))
    picked = torch.zeros(count, chunks.n_features, dtype=torch.float32, device=chunks.A.device)
    picked[here.to(picked.device)] = chunks.read(candidates[wanted[here]]).to_dense()
    chunks.ranks.all_sum(0, picked)  # each row is there on one rank alone
    if count <= total:
        return picked
    drawn = torch.rand(picked.shape, dtype=torch.float32, device="cpu", generator=generator)
    return picked * (0.5 + drawn.to(picked.device))
