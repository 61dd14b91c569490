"""Frames: what is sent is what is received, small or large, and nothing leaks."""

import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.formats.npy_file import DataFile
from app.worker import frames
from app.worker.launch import channel
from app.worker.messages import (
    CheckpointPlace,
    Failed,
    Files,
    Fit,
    FitBegun,
    FitProgress,
    FitStopped,
    Key,
    Message,
    Ready,
    Solve,
    Solved,
    StopFit,
)

MESSAGES: list[Message] = [
    Solve(1, Key("encode", "digits", 3, True, "float64")),
    Solved(2**60),
    Failed("job", "NegativeValues", "ä"),
    Ready("cuda:0", {"torch": "2"}),
    FitProgress("job", 3, 9, None, 0.5, None, 1.5),
    Fit("job", "/a b", 128, 10**9, 5, 6, "hals", 7, 1e-4, "auto", 0),
    Fit("job", "/a", 0, 1, 2, 3, "mu", 4, 0, "random", 5, "a@1", "digest", CheckpointPlace("/b", "/c", 30.0)),
    StopFit("job"),
    FitBegun("job", 7, 1.5),
    FitStopped("job"),
]


def round_trip(message: Message, *arrays: np.ndarray) -> frames.Frame:
    here, there = channel()
    with here, there:
        frames.send(here, message, *arrays)
        return frames.receive(there)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_messages(message: Message) -> None:
    frame = round_trip(message)
    assert frame.message == message
    assert frame.arrays == []


@pytest.mark.parametrize("count", [100, 300, 500, 1000, 10_000])
@pytest.mark.parametrize("rows", [0, 1, 16, 17])
def test_a_fit_of_many_files(count: int, rows: int) -> None:
    """Their names take more than a packet has room for."""
    files = [DataFile(f"{number}-{100 * 'n'}.npy", 10**9, 10**12, 10**18) for number in range(count)]
    fit = Fit("job", "", 0, 1, 2, 3, "hals", 4, 0, "auto", 5, online=Files("/data", files, False, 3))
    array = np.random.default_rng(0).random((rows, 1024), np.float32)
    frame = round_trip(fit, array)
    assert frame.message == fit
    np.testing.assert_array_equal(frame.arrays[0], array)


@given(
    st.lists(
        hnp.arrays(
            st.sampled_from([np.float32, np.float64, np.uint8, np.int64]),
            hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9),
        ),
        max_size=frames.MAX_ARRAYS,
    )
)
def test_small_arrays(arrays: list[np.ndarray]) -> None:
    received = round_trip(Solved(1), *arrays).arrays
    assert len(received) == len(arrays)
    for sent, got in zip(arrays, received, strict=True):
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
        np.testing.assert_array_equal(got, sent)
        assert got.flags.writeable
        assert got.flags.aligned


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 4096])
def test_large_arrays_and_the_border_between(rows: int) -> None:
    large = np.random.default_rng(0).random((rows, 1024), np.float32)
    flags = np.ones(rows, np.uint8)
    frame = round_trip(Solved(1), large, flags, large.T)
    np.testing.assert_array_equal(frame.arrays[0], large)
    np.testing.assert_array_equal(frame.arrays[1], flags)
    np.testing.assert_array_equal(frame.arrays[2], large.T)
    frame.arrays[0][:] = 0  # the receiver's own


@pytest.mark.parametrize("sizes", [[1], [1] * 60, [3, 1, 4], [1] * 2000, [700, 1, 1300]])
@pytest.mark.parametrize("columns", [3, 512])
def test_rows_in_several_arrays_travel_as_one(sizes: list[int], columns: int) -> None:
    whole = np.random.default_rng(0).random((sum(sizes), columns), np.float32)
    here, there = channel()
    with here, there:
        packed = frames.Packed(Solved(1), [np.split(whole, np.cumsum(sizes)[:-1])])
        packed.send(here)
        packed.close()
        (received,) = frames.receive(there).arrays
    np.testing.assert_array_equal(received, whole)


def test_no_descriptor_outlives_its_frame() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        round_trip(Solved(1), np.ones((64, 1024), np.float32))
        round_trip(Failed("job", "NegativeValues", "x" * 10**6))
    packed = frames.Packed(Solved(1), [np.ones((64, 1024), np.float32)])
    assert packed.descriptors
    packed.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_order_is_kept_under_back_pressure() -> None:
    here, there = channel()
    count = 2000

    def send() -> None:
        for number in range(count):
            frames.send(here, Solved(number), np.full(100, number))

    with here, there:
        sender = threading.Thread(target=send)
        sender.start()
        for number in range(count):
            frame = frames.receive(there)
            assert frame.message == Solved(number)
            assert frame.arrays[0][0] == number
        sender.join()


def test_the_end_of_the_other_side() -> None:
    here, there = channel()
    there.close()
    with here:
        with pytest.raises(frames.Closed):
            frames.receive(here)
        with pytest.raises(frames.Closed):
            frames.send(here, Solved(1))
