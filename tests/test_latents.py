import hashlib
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimdata import latents
from dimdata.latents import bits, fold, integers, normal, permutation, stream, uniform, uniforms


def draw(seed=0, epoch=0, count=2000, size=64):
    return latents.latents(seed, epoch, torch.arange(count), size)


# Golden values: a generator's images are named by (seed, epoch, index), so these must never change.


def test_golden_latents_of_seed_0():
    x = draw(count=1000)
    assert x.dtype == torch.float32
    assert x[:2, :4].tolist() == [
        [-0.24292945861816406, 0.0063686370849609375, -0.657801628112793, 0.4790802001953125],
        [1.045170783996582, -0.1247243881225586, -1.01116943359375, 0.34237194061279297],
    ]
    digest = hashlib.sha256(x.numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == "6601ffb8d230d43ca4c299bcf764c5dbaffd5694e226a3599d10d5deb3a43443"


def test_golden_latents_of_a_later_epoch_and_a_large_index():
    assert latents.latents(0, 1, torch.tensor([7]), 4).tolist() == [
        [0.7086677551269531, -0.42937755584716797, -0.8356246948242188, 2.1074342727661133]
    ]
    assert latents.latents(0, 0, torch.tensor([2**39 + 5]), 4).tolist() == [
        [-0.6005935668945312, -0.707733154296875, -0.18691062927246094, -0.3611297607421875]
    ]


def test_golden_words():
    key = fold(0)
    assert (key, fold(1, 2), stream("latent")) == (5197578548964807871, 5075968835044889106, 5485241934644411733)
    assert bits(key, torch.tensor([0, 1])).tolist() == [[3235846975224723415], [6752573004810752849]]
    assert integers(key, torch.arange(6), 10).tolist() == [1, 3, 0, 1, 0, 0]
    assert uniform(key, torch.arange(1), 3).tolist() == [[0.17541557550430298, 0.6797147989273071, 0.47321581840515137]]
    assert permutation(key, 8).tolist() == [6, 7, 4, 2, 5, 3, 0, 1]


# Purity.


@given(
    seed=st.integers(-(2**100), 2**100),
    epoch=st.integers(0, 2**40),
    index=st.lists(st.integers(0, 2**40), min_size=1, max_size=20),
    size=st.integers(0, 13),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_a_latent_depends_on_seed_epoch_and_index_alone(seed, epoch, index, size, data):
    whole = latents.latents(seed, epoch, torch.tensor(index), size)
    assert whole.shape == (len(index), size)
    order = data.draw(st.permutations(range(len(index))))
    shuffled = latents.latents(seed, epoch, torch.tensor(index)[list(order)], size)
    assert torch.equal(shuffled, whole[list(order)])
    one_by_one = [latents.latents(seed, epoch, torch.tensor([i]), size) for i in index]
    assert torch.equal(torch.cat(one_by_one), whole)


@given(words=st.lists(st.integers(-(2**130), 2**130), max_size=4), other=st.lists(st.integers(), max_size=4))
@settings(max_examples=200, deadline=None)
def test_folding_tells_keys_apart(words, other):
    assert 0 <= fold(*words) < 2**64
    assert (fold(*words) == fold(*other)) == (words == other)


@pytest.mark.parametrize("shape", [(0,), (1,), (5,)])
@pytest.mark.parametrize("size", [0, 1, 4, 5])
def test_shapes(shape, size):
    index = torch.arange(*shape)
    assert normal(1, index, size).shape == (*shape, size)
    assert uniform(1, index, size).shape == (*shape, size)
    assert bits(1, index, max(size, 1)).shape == (*shape, max(size, 1))


def test_the_index_is_left_as_it_was_and_may_be_strided_or_narrow():
    index = torch.arange(20)
    strided = latents.latents(0, 0, index[::3], 8)
    assert torch.equal(strided, latents.latents(0, 0, torch.arange(0, 20, 3), 8))
    assert torch.equal(strided, latents.latents(0, 0, index[::3].to(torch.int32), 8))
    assert torch.equal(index, torch.arange(20))


def test_no_global_random_state_is_read_or_touched():
    def states():
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()

    before = states()
    first = draw(count=10)
    assert states() == before
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    assert torch.equal(draw(count=10), first)


def test_defaults_of_torch_change_nothing():
    first = draw(count=10)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(draw(count=10), first)
        assert draw(count=10, size=0).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


# Statistics; with fixed seeds these are facts, not chances.


def test_moments_are_those_of_the_normal_law():
    x = draw(count=20_000).double()
    n = x.numel()  # 1.28 million
    assert abs(x.mean()) < 4 / n**0.5
    assert abs(x.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((x**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 4 * (96 / n) ** 0.5
    # Midpoints of 65,536 quantiles: the tail ends at about 4.3 deviations.
    assert 4 < x.abs().max() < 4.4


def test_the_distribution_is_the_normal_one():
    x = draw(count=4000).flatten().double().sort().values
    exact = 0.5 * (1 + torch.special.erf(x / 2**0.5))
    ranks = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
    assert (exact - ranks).abs().max() < 1.95 / len(x) ** 0.5  # Kolmogorov-Smirnov at 0.1 %


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("epoch", {"epoch": 1}),
        ("seed", {"seed": 1}),
        ("negative seed", {"seed": -1}),
        ("seed equal in its low 32 bits", {"seed": 2**32}),
        ("seed equal in its low 64 bits", {"seed": 2**64}),
        ("epoch equal in its low 32 bits", {"epoch": 2**32}),
    ],
)
def test_other_keys_give_unrelated_latents(name, other):
    a, b = draw(), draw(**other)
    assert abs(correlation(a, b)) < 4 / a.numel() ** 0.5
    assert not (a == b).all(1).any()


def test_seed_and_epoch_do_not_stand_for_one_another():
    assert not torch.equal(draw(seed=1, epoch=2), draw(seed=2, epoch=1))
    assert not torch.equal(draw(seed=0, epoch=1), draw(seed=1, epoch=0))


@pytest.mark.parametrize("lag", [1, 2, 10, 100, 1024])
def test_neighbouring_indices_and_positions_are_unrelated(lag):
    x = draw(count=3000)
    assert abs(correlation(x[:-lag], x[lag:])) < 4 / x[lag:].numel() ** 0.5
    shifted = draw(count=200, size=2048)
    assert abs(correlation(shifted[:, :-lag], shifted[:, lag:])) < 4 / shifted[:, lag:].numel() ** 0.5


def test_no_two_latents_are_alike():
    rows = torch.cat([draw(seed, epoch, 5000, 8) for seed in (0, 1, 2**32) for epoch in range(4)])
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_every_bit_of_the_words_is_fair():
    words = bits(fold(5), torch.arange(5000), 4).flatten()
    share = torch.stack([((words >> k) & 1).double().mean() for k in range(64)])
    assert (share - 0.5).abs().max() < 4.5 * 0.5 / len(words) ** 0.5


def test_uniform_values():
    x = uniform(3, torch.arange(20_000), 5).double()
    assert x.min() >= 0
    assert x.max() < 1
    assert abs(x.mean() - 0.5) < 4 * (1 / 12 / x.numel()) ** 0.5
    assert torch.equal(x * 2**24, (x * 2**24).round())


def test_uniform_values_of_several_keys_are_those_of_each():
    index, keys = torch.tensor([5, 0, 2**40, 5]), [0, 3, 2**64 - 1]
    for size in (1, 2, 5):
        several = uniforms(keys, index, size)
        assert torch.equal(several, torch.stack([uniform(key, index, size) for key in keys]))
        assert torch.equal(several[..., :1], uniforms(keys, index, 1))
    assert index.tolist() == [5, 0, 2**40, 5]


@pytest.mark.parametrize("below", [1, 2, 7, 1000, 2**31])
def test_integers_fill_their_range(below):
    x = integers(3, torch.arange(20_000), below)
    assert 0 <= int(x.min()) <= int(x.max()) < below
    assert abs(x.double().mean() - (below - 1) / 2) <= 4 * below * (1 / 12 / 20_000) ** 0.5
    if below <= 1000:
        assert len(x.unique()) == below


@given(key=st.integers(0, 2**64 - 1), length=st.integers(0, 200))
@settings(max_examples=50, deadline=None)
def test_a_permutation_holds_every_number_once(key, length):
    assert permutation(key, length).sort().values.tolist() == list(range(length))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_bits():
    index = torch.arange(0, 2**36, 2**24 + 1)
    for size in (1, 5, 64, 128):
        here, there = (latents.latents(3, 5, index.to(device), size) for device in ("cpu", "cuda"))
        assert torch.equal(here, there.cpu())
    assert torch.equal(integers(3, index.cuda(), 1000).cpu(), integers(3, index, 1000))
    assert torch.equal(uniform(3, index.cuda(), 5).cpu(), uniform(3, index, 5))
