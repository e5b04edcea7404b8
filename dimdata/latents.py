"""All noise in dimdata comes from here: pure functions of integers, with no state anywhere.

A value is named by its *key* (a tuple of 64-bit words such as seed and epoch), an *index* and its position. It does
not depend on the batch it is computed in, on the process, the device or the order of calls, and no global random
state is read or touched. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).

Normal values are looked up: 16 bits of hash choose one of 65,536 quantiles. Integer arithmetic and one table make
them bit-identical wherever they are computed, which `log` and `cos` of different vector units are not.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB


def _signed(word: int) -> int:
    """The 64-bit word as the int64 of the same bits."""
    word &= _MASK
    return word - (1 << 64) if word >> 63 else word


_SIGNED_GOLDEN, _SIGNED_1, _SIGNED_2 = map(_signed, (_GOLDEN, _MULTIPLY_1, _MULTIPLY_2))


def _mix_int(word: int) -> int:
    word &= _MASK
    word = ((word ^ (word >> 30)) * _MULTIPLY_1) & _MASK
    word = ((word ^ (word >> 27)) * _MULTIPLY_2) & _MASK
    return word ^ (word >> 31)


def _shift(words: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _mix_(words: Tensor) -> Tensor:
    """Mix int64 words in place: `_mix_int` of each."""
    words ^= _shift(words, 30)
    words *= _SIGNED_1
    words ^= _shift(words, 27)
    words *= _SIGNED_2
    words ^= _shift(words, 31)
    return words


def stream(name: str) -> int:
    """Return a 64-bit word for a purpose, so that two purposes with equal seeds share no noise."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def fold(*words: int) -> int:
    """Fold integers of any size and sign into one 64-bit key; order matters."""
    key = 0
    for word in words:
        while True:  # words of more than 64 bits are folded in pieces, so that no two seeds meet
            key = _mix_int(key + _GOLDEN + _mix_int(word & _MASK))
            word >>= 64
            if word in (0, -1):
                break
        key = _mix_int(key ^ (word & 1))
    return key


def bits(key: int, index: Tensor, count: int = 1) -> Tensor:
    """Return `count` 64-bit words for each index.

    Args:
        key: A folded key.
        index: int64 `[B]`.
        count: Words for each index.

    Returns:
        int64 `[B, count]`, all 64 bits uniform.
    """
    return _words(_rows(index).add_(_signed(key)), count)


def _rows(index: Tensor) -> Tensor:
    """What tells the words of one key apart by their index, in a tensor of its own: int64 `[B]`."""
    return index.to(torch.int64) * _SIGNED_GOLDEN


def _words(rows: Tensor, count: int) -> Tensor:
    """Return `count` words for each row of indices with keys, int64 `[..., B, count]`; the rows are overwritten."""
    return _mix_(_mix_(rows)[..., None] + _steps(count, rows.device))


@functools.lru_cache(maxsize=64)
def _steps(count: int, device: torch.device) -> Tensor:
    """What tells the words of one index apart, int64 `[count]`."""
    with torch.inference_mode(False):
        return torch.arange(1, count + 1, device=device, dtype=torch.int64) * _SIGNED_GOLDEN


@functools.cache
def _quantiles(device: torch.device) -> Tensor:
    """The 65,536 mid-point quantiles of the standard normal law, float32, symmetrical about zero."""
    with torch.inference_mode(False):
        ranks = torch.arange(1, 65536, 2, dtype=torch.float64, device="cpu") / 65536  # the upper half
        upper = torch.special.erfinv(ranks) * 2.0**0.5
        # Fixed-point rounding hides the last bits of erfinv, the only thing here that two machines could disagree on.
        upper = (upper * 2.0**20).round() / 2.0**20
        return torch.cat([-upper.flip(0), upper]).to(torch.float32).to(device)


def normal(key: int, index: Tensor, size: int) -> Tensor:
    """Return standard normal values, float32 `[B, size]` in about [-4.32, 4.32]; `index` is int64 `[B]`."""
    if size == 0:
        return torch.empty(len(index), 0, dtype=torch.float32, device=index.device)
    words = bits(key, index, (size + 3) // 4)
    # Four parts to a word, the lowest bits first: the order of little-endian machines.
    parts = words.flatten().view(torch.int16).view(len(index), 4 * words.shape[1])
    ranks = parts[:, :size].to(torch.int32) & 0xFFFF
    return _quantiles(index.device).index_select(0, ranks.flatten()).view(len(index), size)


def uniform(key: int, index: Tensor, size: int) -> Tensor:
    """Return uniform values in [0, 1), float32 `[B, size]`, multiples of 2^-24; `index` is int64 `[B]`."""
    return uniforms([key], index, size)[0]


def uniforms(keys: Sequence[int], index: Tensor, size: int) -> Tensor:
    """Return the uniform values of several keys, float32 `[K, B, size]`, with little more launches than those of one.

    The values of a key are those of `uniform`, and the first of them are the same whatever the size.
    """
    rows = _rows(index)
    words = _words(torch.stack([rows + _signed(key) for key in keys]), max((size + 1) // 2, 1))
    parts = torch.stack([_shift(words, 40), _shift(words << 24, 40)], dim=-1)
    return parts.flatten(-2)[..., :size].to(torch.float32) * 2.0**-24


def integers(key: int, index: Tensor, below: int) -> Tensor:
    """Return one integer in [0, below) for each index, int64 `[B]`; `below` is at most 2^31."""
    return (_shift(bits(key, index)[:, 0], 32) * below) >> 32


def permutation(key: int, length: int, device: torch.device | str = "cpu") -> Tensor:
    """Return a random order of `range(length)`, int64 `[length]`."""
    index = torch.arange(length, device=device)
    return torch.argsort(bits(key, index)[:, 0], stable=True)


_LATENT = stream("latent")


def latents(seed: int, epoch: int, index: Tensor, size: int) -> Tensor:
    """Return the latents of a draw: a pure function of (seed, epoch, index).

    Args:
        seed: Any integer.
        epoch: Any integer; a fixed draw uses 0 throughout.
        index: int64 `[B]`.
        size: Values of each latent, Z.

    Returns:
        float32 `[B, Z]`, standard normal, bit-identical on every device and in any batch.
    """
    return normal(fold(_LATENT, seed, epoch), index, size)
