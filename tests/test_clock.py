import copy
import io
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimdata.clock import MAX_MARKS, EpochClock


def read(clock, *indices):
    return clock.read(torch.tensor(indices))


def shared(clock):
    """The clock as a spawned worker gets it."""
    return pickle.loads(ForkingPickler.dumps(clock))


def test_whole_passes_count_from_zero():
    clock = EpochClock(6)
    assert [read(clock, a, a + 1) for _ in range(4) for a in (0, 2, 4)] == [e for e in range(4) for _ in range(3)]


def test_an_index_read_before_opens_the_next_epoch_for_its_whole_batch():
    clock = EpochClock(6)
    assert read(clock, 0, 1) == 0
    assert read(clock, 2, 1) == 1
    assert read(clock, 0) == 1  # of epoch 0, so new at epoch 1
    assert read(clock, 2) == 2


def test_duplicates_within_a_batch_are_no_signal():
    clock = EpochClock(6)
    assert read(clock, 3, 3, 3) == 0
    assert read(clock, 3, 3) == 1


@given(length=st.integers(1, 60), batch=st.integers(1, 70), data=st.data())
@settings(max_examples=60, deadline=None)
def test_whole_passes_in_any_order_and_batch_size_are_whole_epochs(length, batch, data):
    clock = EpochClock(length)
    for epoch in range(4):
        order = torch.tensor(data.draw(st.permutations(range(length))))
        assert {clock.read(part) for part in order.split(batch)} == {epoch}


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), max_size=40))
@settings(max_examples=100, deadline=None)
def test_no_index_is_read_twice_at_one_epoch_except_within_a_batch(batches):
    clock, seen = EpochClock(10), set()
    for batch in batches:
        draws = {(read(clock, *batch), index) for index in batch}
        assert not draws & seen
        seen |= draws


def test_set_makes_the_next_pass_that_epoch_and_later_ones_count_on():
    clock = EpochClock(4)
    read(clock, 0, 1, 2)
    clock.set(7)
    assert clock.epoch == clock.next_epoch == 7
    assert [read(clock, 0, 1), read(clock, 2, 3), read(clock, 0, 1)] == [7, 7, 8]
    clock.set(0)
    assert read(clock, 0, 1, 2, 3) == 0


def test_the_marks_never_mistake_an_epoch_for_unread_or_for_its_neighbour():
    for start in (0, 32_765, 65_533, 65_534, 65_535, 2**40, 2**62 - 4):
        clock = EpochClock(3)
        clock.set(start)
        assert [read(clock, 0, 1, 2) for _ in range(4)] == [start + k for k in range(4)]


def test_looks_count_for_each_index_and_leave_the_epoch():
    clock = EpochClock(5)
    assert [clock.look(2), clock.look(2), clock.look(3), clock.look(2)] == [0, 1, 0, 2]
    assert clock.epoch == clock.next_epoch == 0
    assert read(clock, 2) == 0
    clock.set(10)
    assert [clock.look(2), clock.look(2)] == [10, 11]


def test_the_next_epoch_is_this_one_until_something_is_read():
    clock = EpochClock(5)
    assert clock.next_epoch == 0
    read(clock, 4)
    assert (clock.epoch, clock.next_epoch) == (0, 1)


def test_a_state_goes_on_with_what_follows():
    clock = EpochClock(5)
    read(clock, 0)
    read(clock, 0)
    clock.look(3)
    twin = EpochClock(5)
    twin.load_state_dict(clock.state_dict())
    assert [read(twin, 1), read(twin, 1)] == [2, 3]
    assert [twin.look(3), twin.look(4)] == [1, 0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda clock: pickle.loads(pickle.dumps(clock))])
def test_copies_go_on_by_themselves(copied):
    clock = EpochClock(5)
    read(clock, 0)
    twin = copied(clock)
    assert read(twin, 0) == 1
    assert (clock.epoch, twin.epoch) == (0, 1)
    twin.set(9)
    assert clock.epoch == 0


def test_a_worker_shares_the_memory():
    clock = EpochClock(5)
    worker = shared(clock)
    assert read(worker, 0) == 0
    assert read(clock, 0) == 1
    assert worker.epoch == 1
    clock.set(6)
    assert read(worker, 0) == 6
    assert read(shared(worker), 0) == 7


def test_two_workers_open_an_epoch_once():
    clock = EpochClock(8)
    one, two = shared(clock), shared(clock)
    for epoch in range(3):
        assert [read(one, 0, 1), read(two, 2, 3), read(two, 6, 7), read(one, 4, 5)] == [epoch] * 4


@pytest.mark.parametrize("length", [1, MAX_MARKS, MAX_MARKS + 1, 10_000_000, 2**40])
def test_the_memory_is_bounded(length):
    clock = EpochClock(length)
    assert clock._memory.nbytes <= 2 * MAX_MARKS + 24
    assert len(pickle.dumps(clock)) < 1000
    assert read(clock, 0, length - 1) == 0


@pytest.mark.parametrize("shuffled", [False, True])
def test_whole_passes_above_the_bound(shuffled):
    length = 3 * MAX_MARKS + 7
    clock = EpochClock(length)
    for epoch in range(3):
        order = torch.randperm(length, generator=torch.Generator().manual_seed(epoch)) if shuffled else None
        order = torch.arange(length) if order is None else order
        assert {clock.read(part) for part in order.split(100_000)} == {epoch}


@pytest.mark.parametrize("stride", [2, 3, 4, 5, 8, 64, 1000])
def test_no_stride_misses_the_marks(stride):
    clock = EpochClock(8 * MAX_MARKS)
    for first in range(min(stride, 3)):
        clock.set(0)
        begun, batch = torch.arange(first, 2_000 * stride, stride).split([1, 1_999])
        assert clock.read(begun) == 0  # read apart: it would tell the second epoch without any mark
        assert [clock.read(batch), clock.read(batch)] == [0, 1]


def test_every_block_has_one_mark():
    clock = EpochClock(4 * MAX_MARKS)
    places = clock._places(torch.arange(40_000))
    assert places.tolist() == list(range(10_000))


def test_the_shared_pickle_is_small():
    buffer = io.BytesIO()
    ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(EpochClock(10_000_000))
    assert len(buffer.getvalue()) < 2_000


def test_a_part_in_which_nothing_is_marked_has_whole_epochs_too():
    clock = EpochClock(10_000_000)
    part = torch.arange(1_000)
    part = part[torch.tensor([len(clock._places(index[None])) == 0 for index in part])]
    assert len(part) > 500
    for epoch in range(4):
        assert {clock.read(batch) for batch in part.split(7)} == {epoch}
    assert clock.next_epoch == 4
    clock.set(9)
    assert [clock.read(batch) for batch in part.split(400)] == [9, 9, 9][: len(part.split(400))]


def test_no_read_sets_the_epoch_back():
    """A reader that was held up between its two looks at the epoch finds that others are further."""
    clock = EpochClock(10)
    read(clock, 3)
    late = shared(clock)
    asked = iter([0, 7])  # what it sees of the epoch
    type(late).epoch, kept = property(lambda self: next(asked)), type(late).epoch
    try:
        clock._epoch.fill_(7)
        late.read(torch.tensor([3]))
    finally:
        type(late).epoch = kept
    assert clock.epoch == 7
