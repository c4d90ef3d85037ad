"""An order of rows that needs no table: a keyed permutation of `[0, n)`, computed entry by entry."""

import hashlib
import json
import math

import numpy as np

ROUNDS = 8  # of the Feistel network, half of them on each digit; blake2b's 64 bytes hold so many keys

# The two multipliers of the finalizer of SplitMix64 (Steele, Lea and Flood 2014, variant 13 of Stafford's mixers).
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFT_1, SHIFT_2, HALF = np.uint64(30), np.uint64(27), np.uint64(32)


def make_key(seed: int, name: str, epoch: int) -> np.ndarray:
    """Derive the key of one epoch of a named set: uint64 `[ROUNDS]`."""
    message = json.dumps([seed, name, epoch]).encode()
    return np.frombuffer(hashlib.blake2b(message, digest_size=8 * ROUNDS).digest(), "<u8").astype(np.uint64)


def permute(indices: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Say which of `n` things stands at each place of the order that belongs to `key`.

    A Feistel network on numbers of two digits, of base a and b with a·b just above n (Black and Rogaway 2002).
    What lands in the gap of fewer than a numbers goes through it again until it falls below n.

    Args:
      indices: places, integers in `[0, n)`.
      n: number of things, 1 to 2^62.
      key: uint64 `[ROUNDS]`.

    Returns:
      int64, the shape of `indices`; over all places each number below n comes once.

    Raises:
      ValueError: if a place is not in `[0, n)`.
    """
    numbers = np.asarray(indices).astype(np.uint64)
    if numbers.size and numbers.max() >= n:
        raise ValueError(f"places must lie in [0, {n})")
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    numbers = _network(numbers, np.uint64(a), np.uint64(b), key)
    while (outside := numbers >= n).any():
        numbers[outside] = _network(numbers[outside], np.uint64(a), np.uint64(b), key)
    return numbers.astype(np.int64)


def _network(numbers: np.ndarray, a: np.uint64, b: np.uint64, key: np.ndarray) -> np.ndarray:
    """Permute `[0, a·b)`: add to each digit in turn a hash of the other one."""
    high, low = np.divmod(numbers, b)
    for even, odd in key.reshape(-1, 2):
        high = (high + _hash(low ^ even)) % a
        low = (low + _hash(high ^ odd)) % b
    return high * b + low


def _hash(x: np.ndarray) -> np.ndarray:
    """Mix 64 bits and keep the upper 32, so that adding a digit cannot overflow."""
    x = (x ^ (x >> SHIFT_1)) * MIX_1
    x = (x ^ (x >> SHIFT_2)) * MIX_2
    return x >> HALF
