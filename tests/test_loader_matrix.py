"""Whole passes are epochs 0, 1, 2 for any settings of a DataLoader, with the exact latents of (seed, epoch, index)."""

import itertools

import pytest
import torch
from echo import echo, epochs_of, index_of
from torch.utils.data import ConcatDataset, DataLoader, Dataset, DistributedSampler, Subset

from dimdata.dataset import GeneratedDataset

IMAGES = 30


class Wrapper(Dataset):
    """A user's wrapper, without `__getitems__`."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        image, label = self.data[index]
        return image, label


def dataset(**arguments):
    return GeneratedDataset(echo(classes=3), ipc=IMAGES // 3, **arguments)


def order():
    return torch.Generator().manual_seed(0)


def one_pass(loader):
    """Return the epochs and indices of a pass, and check the labels."""
    epochs, indices = [], []
    for images, labels in loader:
        epochs += epochs_of(images)
        indices += index_of(images).tolist()
        assert labels.tolist() == [index % 3 for index in index_of(images).tolist()]
    return epochs, indices


# name: what is loaded, the loader's arguments, the indices of a pass (none: a chance part of them)
SHAPES = {
    "plain": (lambda data: data, {}, range(IMAGES)),
    "shuffled": (lambda data: data, {"shuffle": True}, range(IMAGES)),
    "subset": (lambda data: Subset(data, range(5, 25)), {"shuffle": True}, range(5, 25)),
    "subset of subset": (lambda data: Subset(Subset(data, range(5, 25)), range(8)), {}, range(5, 13)),
    "concat": (lambda data: ConcatDataset([data]), {"shuffle": True}, range(IMAGES)),
    "wrapper": (Wrapper, {"shuffle": True}, range(IMAGES)),
    "subset of wrapper": (lambda data: Subset(Wrapper(data), range(9)), {}, range(9)),
    "drop_last": (lambda data: data, {"shuffle": True, "drop_last": True}, None),
    "out of order": (lambda data: data, {"shuffle": True, "in_order": False}, range(IMAGES)),
}
WORKERS = {
    "no workers": {},
    "fork": {"num_workers": 2, "multiprocessing_context": "fork"},
    "fork, persistent": {"num_workers": 2, "multiprocessing_context": "fork", "persistent_workers": True},
}
# Starting these takes seconds; what differs from fork is how the clock gets to the workers.
SLOW = {
    "spawn, persistent": {"num_workers": 2, "multiprocessing_context": "spawn", "persistent_workers": True},
    "forkserver": {"num_workers": 1, "multiprocessing_context": "forkserver"},
    "forkserver, persistent": {"num_workers": 2, "multiprocessing_context": "forkserver", "persistent_workers": True},
}


def check_passes(shape, workers, passes=3):
    wrap, arguments, expected = SHAPES[shape]
    if arguments.get("in_order") is False and not workers:
        arguments = {key: value for key, value in arguments.items() if key != "in_order"}
    data = dataset(seed=0)
    loader = DataLoader(wrap(data), batch_size=4, generator=order(), **arguments, **workers)
    for epoch in range(passes):
        epochs, indices = one_pass(loader)
        assert epochs == [epoch] * len(epochs), f"pass {epoch} is of epochs {sorted(set(epochs))}"
        if expected is None:
            assert len(set(indices)) == len(indices) == IMAGES - IMAGES % 4
        else:
            assert sorted(indices) == list(expected)
    return data, loader


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("workers", WORKERS)
def test_whole_passes_are_whole_epochs(workers, shape):
    check_passes(shape, WORKERS[workers])


@pytest.mark.parametrize(
    ("workers", "shape", "passes"),
    [("spawn, persistent", "shuffled", 3), ("forkserver", "drop_last", 2), ("forkserver, persistent", "wrapper", 3)],
)
def test_whole_passes_of_workers_that_do_not_fork(workers, shape, passes):
    data, loader = check_passes(shape, SLOW[workers], passes)
    data.set_epoch(9)
    assert set(one_pass(loader)[0]) == {9}


@pytest.mark.parametrize("workers", WORKERS)
def test_the_fast_loader_has_the_same_epochs(workers):
    data = dataset()
    loader = data.loader(4, seed=0, **WORKERS[workers])
    for epoch in range(3):
        epochs, indices = one_pass(loader)
        assert set(epochs) == {epoch}
        assert sorted(indices) == list(range(IMAGES))


def test_workers_change_no_pass_of_a_loader():
    runs = [
        [one_pass(loader) for _ in range(2)]
        for loader in (dataset().loader(4, seed=5, **workers) for workers in WORKERS.values())
    ]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("single", [False, True])
def test_set_epoch_reaches_live_workers(single):
    data = dataset()
    loader = DataLoader(Wrapper(data) if single else data, batch_size=4, **WORKERS["fork, persistent"])
    assert set(one_pass(loader)[0]) == {0}
    for epoch in (7, 3, 3):
        data.set_epoch(epoch)
        assert set(one_pass(loader)[0]) == {epoch}
    assert set(one_pass(loader)[0]) == {4}
    assert data.epoch == 4


def test_loaders_that_take_turns_count_together():
    data = dataset()
    loaders = [DataLoader(data, batch_size=size, shuffle=True, **WORKERS["fork"]) for size in (4, 7)]
    assert [set(one_pass(loader)[0]) for loader in loaders * 2] == [{0}, {1}, {2}, {3}]


@pytest.mark.parametrize("workers", WORKERS)
def test_two_loaders_at_once_on_clones(workers):
    data = dataset()
    loaders = [DataLoader(part, batch_size=4, **WORKERS[workers]) for part in (data, data.clone())]
    for epoch in range(3):
        for (a, _), (b, _) in zip(*loaders, strict=True):
            assert epochs_of(a) == epochs_of(b) == [epoch] * len(a)


def test_two_loaders_at_once_on_one_dataset_never_repeat_an_image():
    data = dataset()
    loaders = [DataLoader(data, batch_size=4, shuffle=True, generator=order()) for _ in range(2)]
    seen = set()
    for _ in range(3):
        for (a, _), (b, _) in zip(*loaders, strict=True):
            for images in (a, b):
                draws = set(zip(epochs_of(images, most=60), index_of(images).tolist(), strict=True))
                assert not draws & seen
                seen |= draws
    assert all(epoch >= 0 for epoch, _ in seen)


@pytest.mark.parametrize("workers", WORKERS)
def test_a_pass_left_by_break_is_followed_by_fresh_ones(workers):
    data = dataset()
    loader = DataLoader(data, batch_size=4, shuffle=True, generator=order(), **WORKERS[workers])
    seen = set()
    for stop in (2, None, 3, None, None):
        for images, _ in itertools.islice(iter(loader), stop):
            draws = set(zip(epochs_of(images), index_of(images).tolist(), strict=True))
            assert not draws & seen
            assert all(epoch >= 0 for epoch, _ in draws)
            seen |= draws


@pytest.mark.parametrize("workers", ["no workers", "fork"])
def test_set_epoch_after_a_break_is_exact(workers):
    data = dataset()
    loader = DataLoader(data, batch_size=4, shuffle=True, **WORKERS[workers])
    for epoch in (0, 1, 2):
        data.set_epoch(epoch)
        for images, _ in loader:
            assert set(epochs_of(images)) == {epoch}
            break
        data.set_epoch(epoch)
        assert set(one_pass(loader)[0]) == {epoch}


def test_peeks_between_and_during_passes():
    data = dataset()
    loader = DataLoader(data, batch_size=4, shuffle=True, **WORKERS["fork, persistent"])
    for epoch in range(3):
        assert epochs_of(data[0][0]) == [2 * epoch]
        for images, _ in loader:
            assert set(epochs_of(images)) == {epoch}
        assert epochs_of(data[0][0]) == [2 * epoch + 1]


def test_ranks_that_do_not_shuffle_have_whole_epochs():
    ranks = [dataset() for _ in range(2)]
    samplers = [DistributedSampler(data, 2, rank, shuffle=False) for rank, data in enumerate(ranks)]
    loaders = [DataLoader(data, batch_size=4, sampler=s) for data, s in zip(ranks, samplers, strict=True)]
    for epoch in range(3):
        passes = [one_pass(loader) for loader in loaders]
        assert [set(epochs) for epochs, _ in passes] == [{epoch}] * 2
        assert passes[0][1] == list(range(0, IMAGES, 2))
        assert passes[1][1] == list(range(1, IMAGES, 2))


@pytest.mark.parametrize("fast", [False, True])
def test_ranks_that_shuffle_have_whole_epochs_by_set_epoch(fast):
    ranks = [dataset() for _ in range(2)]
    samplers = [DistributedSampler(data, 2, rank, seed=1) for rank, data in enumerate(ranks)]
    loaders = [
        data.loader(4, sampler=sampler) if fast else DataLoader(data, batch_size=4, sampler=sampler)
        for data, sampler in zip(ranks, samplers, strict=True)
    ]
    for epoch in range(4):
        for part in (*ranks, *samplers):
            part.set_epoch(epoch)
        passes = [one_pass(loader) for loader in loaders]
        assert [set(epochs) for epochs, _ in passes] == [{epoch}] * 2
        assert sorted(passes[0][1] + passes[1][1]) == list(range(IMAGES))


def rank_passes(rank, data, workers, way, answers):
    """What a rank of two reads in three passes, and in a fourth that it calls the ninth."""
    part = Subset(data, range(IMAGES)) if way == "subset" else data
    sampler = DistributedSampler(part, 2, rank, shuffle=way == "shuffled")
    persistent = {"persistent_workers": True, "multiprocessing_context": "fork"} if workers else {}
    loader = DataLoader(part, batch_size=3, sampler=sampler, num_workers=workers, **persistent)
    passes = []
    for epoch in (0, 1, 2, 9):
        sampler.set_epoch(epoch)
        if way == "shuffled" or epoch == 9:
            data.set_epoch(epoch)
        passes.append(sorted(set(one_pass(loader)[0])))
    answers.put((rank, passes))


@pytest.mark.parametrize(
    ("workers", "way"), [(0, "plain"), (0, "shuffled"), (1, "plain"), (1, "subset"), (1, "shuffled")]
)
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_ranks_that_are_started_with_one_dataset_have_epochs_of_their_own(workers, way, start):
    """`torch.multiprocessing.spawn` hands all ranks one dataset; none moves the epoch of another."""
    context = torch.multiprocessing.get_context(start)
    answers, data = context.SimpleQueue(), dataset(seed=0)
    for rank in (0, 1):  # one after the other: the first would be three passes ahead of the second
        process = context.Process(target=rank_passes, args=(rank, data, workers, way, answers))
        process.start()
        assert answers.get() == (rank, [[0], [1], [2], [9]])
        process.join()
    assert data.epoch == 0
    assert one_pass(DataLoader(data, batch_size=5))[0] == [0] * IMAGES


def test_a_wrapper_with_drop_last_never_repeats_an_image():
    data = dataset()
    loader = DataLoader(
        Wrapper(data), batch_size=4, shuffle=True, drop_last=True, generator=order(), **WORKERS["fork, persistent"]
    )
    seen = set()
    for _ in range(6):
        epochs, indices = one_pass(loader)
        draws = set(zip(epochs, indices, strict=True))
        assert len(draws) == 28
        assert not draws & seen
        seen |= draws
