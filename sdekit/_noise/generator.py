"""One counter-based random generator: normal(seed, sample, counter, position), in torch operations
on any device.

A 64-bit word is the SplitMix64 finaliser (Steele, Lea, Flood 2014, "Fast splittable pseudorandom
number generators") of a sample's key plus (2^26 counter + position) times the golden ratio; the key
is itself such a word, of (seed, sample). Box and Muller's transform (1958) makes two normals from
each word: its upper half gives the radius, its lower half the angle. Nothing is stored and nothing
is sequential, so a number depends on its four coordinates alone: not on the batch it is drawn in,
the block of steps, the dtype or the order. Numbers are drawn in float32 and cast; devices agree to
rounding.
"""

import math
import operator
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sdekit.calling import is_recorded

Words = TypeVar("Words", Tensor, np.ndarray)

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
# Prevents that a small seed or index gives the word 0, which the finaliser maps to 0.
_SALT = 0x6A09E667F3BCC909
_POSITIONS = 1 << 26  # words between two counters
_CPU_BLOCK = 1 << 15  # evaluated together on the CPU, to fit into the second-level cache
# On accelerators, where every call launches a kernel: about 200 MB of temporary memory.
_ACCELERATOR_BLOCK = 1 << 22

# Operands as tensors: torch makes one of a number in each call, which takes as long as a call on a
# few words. Those without dimensions combine with tensors on any device.
_STRIDE = (_POSITIONS * GOLDEN + 2**63) % 2**64 - 2**63
_GOLDEN_TENSOR, _STRIDE_TENSOR, *_MIX_TENSORS = torch.tensor(
    (GOLDEN, _STRIDE, _MIX_1, _MIX_2), device="cpu"
).unbind()
_SHIFTS = {
    bits: torch.tensor((bits, (1 << (64 - bits)) - 1), device="cpu").unbind()
    for bits in (11, 27, 30, 31, 32)
}
# The same for numpy, as arrays without dimensions: numpy makes an array of a number in each call.
# Its integers have no sign.
_MIX_WORDS = tuple(np.array(mix % 2**64, np.uint64) for mix in (_MIX_1, _MIX_2))
_STRIDE_WORD = np.array(_STRIDE % 2**64, np.uint64)
_COUNTS = {bits: np.array(bits, np.uint64) for bits in (27, 30, 31, 32)}
_GOLDEN_WORD = np.array(GOLDEN % 2**64, np.uint64)
_NUMBERS = (0.5, 2.0**-31, -2.0, math.pi * 2.0**-31)
_HALF, _UNIT, _MINUS_TWO, _ANGLE = torch.tensor(
    _NUMBERS, dtype=torch.float32, device="cpu"
).unbind()
_HALF_NUMBER, _UNIT_NUMBER, _MINUS_TWO_NUMBER, _ANGLE_NUMBER = (
    np.array(number, np.float32) for number in _NUMBERS
)

# Counters below zero belong to draws outside a solve; between -3 and those of the probes they are
# free for users of the library.
PRIOR = -1
PROBES = -(1 << 20)


def fresh_seed() -> int:
    """A new seed in [0, 2^63) from torch's default generator, which is used for nothing else here.

    Example:
        >>> 0 <= sdekit.fresh_seed() < 2**63
        True
    """
    return int(torch.randint(2**63 - 1, ()).item())


def signed(value: int) -> int:
    """The lowest 64 bits of an integer as torch stores them."""
    return (operator.index(value) + 2**63) % 2**64 - 2**63


def _shifted(word: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's own shift is arithmetic."""
    count, mask = _SHIFTS[bits]
    return torch.bitwise_right_shift(word, count).bitwise_and_(mask)


def _is_array(x: Tensor) -> bool:
    """Whether numpy can compute with a tensor, in less time than torch."""
    return x.is_cpu and not is_recorded(x)


def _words(x: Tensor) -> np.ndarray:
    """The words of a tensor, as an array that shares its memory."""
    return x.numpy().view(np.uint64)


def _mix(word: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place: a bijection of 64-bit words in which each bit of the input
    flips about half of the bits of the output.
    """
    if _is_array(word):
        _mix_array(_words(word))
        return word
    word.bitwise_xor_(_shifted(word, 30)).mul_(_MIX_TENSORS[0])
    word.bitwise_xor_(_shifted(word, 27)).mul_(_MIX_TENSORS[1])
    return word.bitwise_xor_(_shifted(word, 31))


def _mix_array(word: np.ndarray) -> None:
    """`_mix` of an array, in place."""
    word ^= word >> _COUNTS[30]
    word *= _MIX_WORDS[0]
    word ^= word >> _COUNTS[27]
    word *= _MIX_WORDS[1]
    word ^= word >> _COUNTS[31]


def _mixed(word: int) -> int:
    """`_mix` of one word, as a Python integer: no work for the device."""
    word %= 2**64
    word = (word ^ (word >> 30)) * _MIX_1 % 2**64
    word = (word ^ (word >> 27)) * _MIX_2 % 2**64
    return word ^ (word >> 31)


def salt(*numbers: int) -> int:
    """64 bits that depend on all bits of integers and on their order, to combine with keys."""
    mixed = 0
    for number in numbers:
        mixed = _mixed(mixed + _SALT + number * GOLDEN)
    return signed(mixed)


def keys(seed: int | Tensor, index: Tensor) -> Tensor:
    """One 64-bit key per sample.

    Arguments:
        seed: any integer, of which the lowest 64 bits are used; or one per sample, integers, shape
            `(batch,)`.
        index: the samples' indices, integers, shape `(batch,)`.
    """
    index = index.to(torch.int64)
    if isinstance(seed, Tensor):
        return _mix(index * _GOLDEN_TENSOR + _mix(seed.to(index) ^ _SALT) + _SALT)
    if _is_array(index):
        return torch.from_numpy(_key_words(seed, _words(index)).view(np.int64))
    return _mix(index * _GOLDEN_TENSOR + signed(_start(seed)))


def _start(seed: int) -> int:
    """What a seed adds to the words of the samples' indices."""
    return _mixed(operator.index(seed) ^ _SALT) + _SALT


@lru_cache(maxsize=64)
def _start_word(seed: int) -> np.uint64:
    """`_start` as a word of an array, kept for later draws with a seed."""
    return np.uint64(_start(seed) % 2**64)


def _key_words(seed: int, index: np.ndarray) -> np.ndarray:
    """`keys` of an array."""
    word = index * _GOLDEN_WORD
    word += _start_word(operator.index(seed))
    _mix_array(word)
    return word


def _normals(key: Tensor, offsets: Tensor, out: Tensor) -> None:
    """Fills out `(rows, 2, words)` with the normals of `(rows,)` keys at `(words,)` offsets."""
    word = _mix(key.unsqueeze(-1) + offsets)
    # Both halves as signed 32-bit integers. |upper + 1/2| / 2^31 is uniform on (0, 1), with a fine
    # resolution near 0.
    radius = torch.bitwise_right_shift(word, _SHIFTS[32][0]).to(torch.float32)
    radius.add_(_HALF).abs_().mul_(_UNIT).log_().mul_(_MINUS_TWO).sqrt_()
    angle = word.to(torch.int32).to(torch.float32).mul_(_ANGLE)
    first, second = out.unbind(1)
    torch.mul(radius, angle.cos(), out=first)
    torch.mul(radius, angle.sin_(), out=second)


def _normals_of_words(key: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
    """`_normals` of arrays, with the same bits: the functions whose rounding may differ are
    torch's.
    """
    word = key[:, np.newaxis] + offsets
    _mix_array(word)
    radius = (word >> _COUNTS[32]).astype(np.int32).astype(np.float32)
    radius += _HALF_NUMBER
    np.abs(radius, out=radius)
    radius *= _UNIT_NUMBER
    radii = torch.from_numpy(radius)
    radii.log_()
    radius *= _MINUS_TWO_NUMBER
    radii.sqrt_()
    angle = word.astype(np.int32).astype(np.float32)
    angle *= _ANGLE_NUMBER
    angles = torch.from_numpy(angle)
    np.multiply(radius, angles.cos().numpy(), out=out[:, 0])
    angles.sin_()
    np.multiply(radius, angle, out=out[:, 1])


def _fill(rows: Tensor, out: Tensor) -> None:
    """Fills out `(rows, 2, words)` from `(rows,)` keys in blocks: of the size of the cache on the
    CPU, limited by memory on an accelerator.
    """
    if _is_array(rows):
        _fill_array(_words(rows), out.numpy())
        return
    words = out.shape[-1]
    _require_positions(words)
    offsets = torch.arange(words, device=rows.device) * _GOLDEN_TENSOR
    limit = _CPU_BLOCK if rows.device.type == "cpu" else _ACCELERATOR_BLOCK
    _fill_blocks(_normals, rows, offsets, out, limit)


def _fill_array(rows: np.ndarray, out: np.ndarray) -> None:
    """`_fill` of arrays."""
    words = out.shape[-1]
    _require_positions(words)
    offsets = np.arange(words, dtype=np.uint64) * _GOLDEN_WORD
    _fill_blocks(_normals_of_words, rows, offsets, out, _CPU_BLOCK)


def _require_positions(words: int) -> None:
    """Refuses draws whose words would be those of the next counter too.

    Raises:
        ValueError: with the number of words.
    """
    if words > _POSITIONS:
        raise ValueError(
            f"a draw has at most {_POSITIONS:,} random words for each sample, not {words:,}: "
            "divide the sample into several"
        )


def _fill_blocks(
    draw: Callable[[Words, Words, Words], None],
    rows: Words,
    offsets: Words,
    out: Words,
    limit: int,
) -> None:
    """Fills out by `draw`, of tensors or arrays, with at most `limit` words at once."""
    words = len(offsets)
    if len(rows) * words <= limit:  # without slices, which cost as much as a call
        draw(rows, offsets, out)
        return
    block_columns = max(1, min(words, limit))
    block_rows = max(1, limit // block_columns)
    for i in range(0, len(rows), block_rows):
        for j in range(0, words, block_columns):
            draw(
                rows[i : i + block_rows],
                offsets[j : j + block_columns],
                out[i : i + block_rows, :, j : j + block_columns],
            )


def standard_normal(key: Tensor, counters: range, size: int) -> Tensor:
    """Standard normals in float32, shape `(counters, batch, size)`.

    Arguments:
        key: from `keys`, shape `(batch,)`.
        counters: the draws, from 0 on.
        size: the number of normals per sample and draw.
    """
    ends = counters.start, counters.stop, counters.step
    shape = (len(counters), key.shape[0], size)
    if _is_array(key):
        offsets = np.arange(*ends, dtype=np.uint64) * _STRIDE_WORD
        words = _words(key) + offsets[:, np.newaxis]
        return torch.from_numpy(_drawn_array(words.reshape(-1), size)).reshape(shape)
    offsets = torch.arange(*ends, device=key.device) * _STRIDE_TENSOR
    return _drawn((key + offsets.unsqueeze(-1)).reshape(-1), size).reshape(shape)


def _drawn(rows: Tensor, size: int) -> Tensor:
    """Standard normals in float32 from `(rows,)` keys, `(rows, size)`."""
    if _is_array(rows):
        return torch.from_numpy(_drawn_array(_words(rows), size))
    shape = (rows.numel(), 2, (size + 1) // 2)
    out = torch.empty(shape, dtype=torch.float32, device=rows.device)
    _fill(rows, out)
    return out.flatten(1)[:, :size]


def _drawn_array(rows: np.ndarray, size: int) -> np.ndarray:
    """`_drawn` of an array."""
    out = np.empty((len(rows), 2, (size + 1) // 2), dtype=np.float32)
    _fill_array(rows, out)
    return out.reshape(len(rows), 2 * out.shape[2])[:, :size]


def normal_pairs(key: Tensor, counters: Tensor, size: int, *, outer: bool = True) -> Tensor:
    """Two independent sets of standard normals in float32, `(2, rows, size)`: each word gives one
    number of both.

    Arguments:
        key, counters: a key and a draw for each row, int64, shape `(rows,)`.
        size: the size of each set.
        outer: False puts the rows first, `(rows, 2, size)`.
    """
    shape = (2, key.numel(), size) if outer else (key.numel(), 2, size)
    out = torch.empty(shape, dtype=torch.float32, device=key.device)
    _fill(key + counters * _STRIDE_TENSOR, out.transpose(0, 1) if outer else out)
    return out


def signs(key: Tensor, counters: Tensor, size: int) -> Tensor:
    """-1 or 1 in float32, 64 from one word, `(rows, size)`; arguments as in `normal_pairs`."""
    word = _mix(
        (key + counters * _STRIDE_TENSOR).unsqueeze(-1)
        + torch.arange(-(-size // 64), device=key.device) * _GOLDEN_TENSOR
    )
    bits = 1 << torch.arange(8, dtype=torch.uint8, device=key.device)
    ones = (
        word.view(torch.uint8).unsqueeze(-1).bitwise_and(bits).reshape(len(key), -1)[:, :size] != 0
    )
    return ones.to(torch.float32).mul_(2).sub_(1)


def normal(
    seed: int | Tensor,
    index: Tensor,
    event: tuple[int, ...],
    *,
    counter: int = PRIOR,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normals that depend only on (seed, sample index, counter) and their position in the
    event.

    Arguments:
        seed: any integer; or one per sample, int64, `(batch,)`.
        index: the samples' indices, int64, `(batch,)`, on the device where the numbers are wanted.
        event: the shape of one sample.
        counter: the number of the draw. Solves use counters from 0 on, draws outside a solve those
            below; the default, -1, is that of initial states.
        dtype: that of the result; the numbers are drawn in float32 and cast.

    Returns:
        a tensor of shape `(batch, *event)`.

    Raises:
        ValueError: for more than 2^27 normals for each sample.

    Example:
        >>> a = sdekit.normal(0, torch.arange(4), (2,))
        >>> b = sdekit.normal(0, torch.arange(2, 4), (2,))
        >>> torch.equal(a[2:], b)  # a sample does not depend on the others
        True
    """
    size = math.prod(event)
    if isinstance(seed, Tensor) or not _is_array(index):
        rows = keys(seed, index) + signed(counter * _STRIDE)
        return _drawn(rows, size).to(dtype).reshape(len(index), *event)
    words = _key_words(seed, _words(index.to(torch.int64)))
    words += np.uint64(operator.index(counter) * _STRIDE % 2**64)
    numbers = torch.from_numpy(_drawn_array(words, size).reshape(len(words), *event))
    return numbers if dtype == torch.float32 else numbers.to(dtype)


def uniform01(seed: int | Tensor, index: Tensor, event: tuple[int, ...], *, counter: int) -> Tensor:
    """Uniform numbers in [0, 1), `(batch, *event)` in float64 with 53 random bits; arguments as in
    `normal`.

    They are computed from the same random bits as those of `normal`: with the same seed and index,
    use different counters.

    Raises:
        ValueError: for more than 2^26 numbers for each sample.

    Example:
        >>> u = sdekit.uniform01(0, torch.arange(4), (2,), counter=0)
        >>> u.shape, u.dtype
        (torch.Size([4, 2]), torch.float64)
    """
    words = math.prod(event)
    _require_positions(words)
    position = counter * _POSITIONS + torch.arange(words, device=index.device)
    word = _mix(keys(seed, index).unsqueeze(-1) + position * GOLDEN)
    return _shifted(word, 11).to(torch.float64).mul_(2.0**-53).reshape(len(index), *event)
