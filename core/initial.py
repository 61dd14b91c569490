"""Where a fit starts: Z and D for activations of any shape and rank, repeatable by seed.

Both starts are generators that yield after each bounded slice of work and return (Z, D).
"""

from collections.abc import Callable, Generator

import torch

from core.chunks import Chunks

Start = Generator[None, None, tuple[torch.Tensor, torch.Tensor]]

# Singular vectors beyond this many describe noise as a rule and cost k³; the concepts beyond start as data rows.
MOST_COMPONENTS = 256
# Passes of subspace iteration: one more sharpens vectors that the first iterations of the fit change anyway.
POWER_PASSES = 2
# Zeros are filled with this share of √(mean(A)/k): enough to grow from, too little to blur the vectors.
FILL_SHARE = 0.1
# Singular values below this share of the largest are lost in a float32 gram, whose rounding is that of their squares.
RANK_SHARE = 1e-3


def random(chunks: Chunks, nb_concepts: int, generator: torch.Generator) -> Start:
    """|N(0, 1)|·√(mean(A)/k) everywhere, so that Z·D has about the mean of A."""
    scale = (chunks.mean / nb_concepts) ** 0.5
    device = chunks.A.device
    D = torch.randn(nb_concepts, chunks.n_features, generator=generator).abs_().mul_(scale).to(device)
    Z = torch.empty(chunks.n_rows, nb_concepts, device=device)
    for rows, _ in chunks:
        Z[rows] = torch.randn(Z[rows].shape, generator=generator).abs_().mul_(scale)
        yield
    return Z, D


def nndsvda(chunks: Chunks, nb_concepts: int, generator: torch.Generator) -> Start:
    """Non-negative double SVD, its zeros filled (Boutsidis & Gallopoulos 2008), by randomised subspace iteration.

    Of each singular pair the larger of the two non-negative halves is kept (Halko, Martinsson & Tropp 2011 for the
    pairs). Two deviations: zeros are filled with 0.1·√(mean(A)/k) rather than mean(A), so that Z·D, not Z and D
    each, is of the size of A; and concepts beyond the rank (or beyond 256) start as data rows, so that any shape
    will do.
    """
    n, d, device = chunks.n_rows, chunks.n_features, chunks.A.device
    components = min(nb_concepts, n, d, MOST_COMPONENTS)
    Z = torch.empty(n, nb_concepts, device=device)
    fill = FILL_SHARE * (chunks.mean / nb_concepts) ** 0.5
    yield

    Q = torch.randn(d, components, generator=generator).to(device)
    for _ in range(POWER_PASSES):
        Y = torch.zeros(d, components, dtype=torch.float64, device=device)
        for _, block in chunks:
            Y += block.T @ (block @ Q)
            yield
        Q = torch.linalg.qr(Y)[0].float()
        yield

    # A·Q is kept in Z's place; its gram gives the singular values, and the rotation to left vectors in place
    gram = torch.zeros(components, components, dtype=torch.float64, device=device)
    for rows, block in chunks:
        projected = block @ Q
        Z[rows, :components] = projected
        gram += projected.T @ projected
        yield
    squares, rotation = torch.linalg.eigh(gram)
    squares, rotation = squares.flip(0).clamp(min=0), rotation.flip(1).float()
    rank = int((squares > RANK_SHARE**2 * squares[0]).sum())
    V = (Q @ rotation[:, :rank]).T
    yield

    halves = torch.zeros(2, rank, dtype=torch.float64, device=device)  # ‖u₊‖², ‖u₋‖² of u = A·v
    for rows, _ in chunks:
        U = Z[rows, :components] @ rotation[:, :rank]
        Z[rows, :rank] = U
        halves[0] += U.clamp(min=0).square().sum(dim=0)
        halves[1] += U.clamp(max=0).square().sum(dim=0)
        yield

    u_norms = halves.sqrt().float()
    v_norms = torch.stack([V.clamp(min=0).norm(dim=1), V.clamp(max=0).norm(dim=1)])
    size = u_norms * v_norms
    sign = torch.where(size[0] >= size[1], 1.0, -1.0)
    chosen = (sign < 0).long()[None]
    u_norm, v_norm, size = (x.gather(0, chosen)[0] for x in (u_norms, v_norms, size))
    D = torch.empty(nb_concepts, d, device=device)
    D[:rank] = (V * sign[:, None]).clamp(min=0) * (size.sqrt() / v_norm)[:, None]
    D[rank:] = yield from _data_rows(chunks, nb_concepts - rank, generator)
    D[D == 0] = fill
    for rows, _ in chunks:
        z = Z[rows]
        z[:, :rank] = (z[:, :rank] * sign).clamp(min=0) * (size.sqrt() / u_norm)
        z[:, rank:] = 0
        z[z == 0] = fill
        yield
    return Z, D


# Each takes chunks that have been surveyed, of an A that is not all zero.
STARTS: dict[str, Callable[[Chunks, int, torch.Generator], Start]] = {"nndsvda": nndsvda, "random": random}
DEFAULT_START = "nndsvda"


def _data_rows(chunks: Chunks, count: int, generator: torch.Generator) -> Generator[None, None, torch.Tensor]:
    """`count` rows that are not zero, evenly spread from a random one on; noise tells repeated ones apart."""
    if count == 0:
        return chunks.A[:0]
    in_use = []
    for rows, block in chunks:
        in_use.append(rows.start + torch.nonzero(block.amax(dim=1) > 0).squeeze(1))
        yield
    candidates = torch.cat(in_use)
    first = int(torch.randint(len(candidates), (), generator=generator))
    step = max(1, len(candidates) // count)
    picked = chunks.read(candidates[(first + step * torch.arange(count)) % len(candidates)])
    if count <= len(candidates):
        return picked
    return picked * (0.5 + torch.rand(picked.shape, generator=generator).to(picked.device))
