import threading
from collections.abc import Callable
from pathlib import Path

import numba
import pytest
import torch

from core import kernels, threads
from core.threads import SMALL_WORK, quota, threads_for
from tests.core.fresh import run_fresh


def test_small_work_leaves_the_other_threads_asleep() -> None:
    count = torch.get_num_threads()
    with threads_for(SMALL_WORK - 1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == count
    with threads_for(SMALL_WORK):
        assert torch.get_num_threads() == count


class Counts:
    """In a matrix's place: its product is how many threads compute it."""

    device = torch.device("cpu")

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def __matmul__(self, other: torch.Tensor) -> int:
        return torch.get_num_threads()


@pytest.mark.parametrize(("rows", "is_small"), [(50_000, True), (200_000, False)])
def test_small_products_have_one_thread(rows: int, is_small: bool) -> None:
    count = torch.get_num_threads()
    told = kernels.product(Counts(rows, 10), torch.ones(10, 10))  # type: ignore[arg-type]
    assert told == (1 if is_small else count)
    assert torch.get_num_threads() == count


def test_threads_born_during_small_work_are_not_alone_for_good() -> None:
    count, seen = torch.get_num_threads(), []

    def other() -> None:
        with threads_for(SMALL_WORK):
            seen.append(torch.get_num_threads())

    def in_a_thread(target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()

    may_go_on, met = threading.Event(), threading.Event()

    def met_by_torch_before() -> None:
        seen.append(torch.get_num_threads())
        met.set()
        may_go_on.wait()
        other()

    early = threading.Thread(target=met_by_torch_before)
    with threads_for(SMALL_WORK - 1):
        in_a_thread(other)
        torch.set_num_threads(1)  # as when the small work began: the other has set it meanwhile
        early.start()
        met.wait()
    may_go_on.set()
    early.join()
    in_a_thread(other)
    assert seen == [count, 1, count, count]


def test_a_thread_that_was_told_to_be_alone_stays_so() -> None:
    count, seen = torch.get_num_threads(), []

    def other() -> None:
        torch.set_num_threads(1)
        with threads_for(SMALL_WORK):
            seen.append(torch.get_num_threads())

    with threads_for(SMALL_WORK - 1):
        pass
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    torch.set_num_threads(count)
    assert seen == [1]


def test_who_is_interrupted_as_small_work_begins_has_all_threads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    count, begin = torch.get_num_threads(), threads._small.begin

    def interrupted(work: object, count: int) -> None:
        begin(work, count)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threads._small, "begin", interrupted)
        with pytest.raises(KeyboardInterrupt), threads_for(SMALL_WORK - 1):
            pass
    assert torch.get_num_threads() == count
    assert not threads._small.under_way


@pytest.mark.parametrize("work", [SMALL_WORK - 1, SMALL_WORK])
def test_numbas_count_is_left_as_it_was(work: int) -> None:
    before = numba.get_num_threads()
    for count in {1, before}:
        numba.set_num_threads(count)
        with threads_for(work):
            pass
        assert numba.get_num_threads() == count


WITHOUT_OPENMP = """
import sys
sys.modules["numba.np.ufunc.omppool"] = None
import threading
import numba, torch
from core import NMF, Dictionary
A = torch.rand(400, 128, generator=torch.Generator().manual_seed(0))
dictionary = Dictionary(A[:64])
expected = dictionary.encode(A).codes
told = []
def work():
    NMF(8, seed=0).fit(A, max_iter=5)
    told.extend(torch.equal(dictionary.encode(A).codes, expected) for _ in range(10))
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(numba.threading_layer(), len(told), all(told))
"""


def test_threads_share_a_dictionary_without_openmp() -> None:
    """Numba ends a process of which two threads use its own threads at once."""
    assert run_fresh(WITHOUT_OPENMP) == "workqueue 30 True"


def test_quota(tmp_path: Path) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "groups"
    unit = root / "system.slice" / "dictserve.service"
    unit.mkdir(parents=True)
    (tmp_path / "cpu.max").write_text("100000 100000")  # beyond the root: nobody's
    assert quota(membership, root) is None
    membership.write_text("1:cpu:/elsewhere\n0::/\n")
    assert quota(membership, root) is None
    for text, cores in (("max 100000", None), ("250000 100000", 2), ("50000 100000", 1)):
        (root / "cpu.max").write_text(text)
        assert quota(membership, root) == cores
    membership.write_text("0::/system.slice/dictserve.service\n")
    for text, least in (("max 100000", 3), ("250000 100000", 2), ("400000 100000", 3)):
        (root / "cpu.max").unlink(missing_ok=True)
        (unit.parent / "cpu.max").write_text("300000 100000")
        (unit / "cpu.max").write_text(text)
        assert quota(membership, root) == least
