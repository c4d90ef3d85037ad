"""Near duplicates: hashes such that texts which share most of their word runs share at least one."""

import numpy as np

SHINGLE = 8  # consecutive tokens, about five English words
BANDS, ROWS = 14, 8  # similarity 0.72 is found at even odds: the setting of datatrove's minhash example
PRIME = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: a multiplicative hash (Knuth, TAOCP 6.4)
CHUNK = 2**12  # runs hashed at once, so that a book needs no more memory than a page


def signature(tokens: np.ndarray) -> np.ndarray:
    """Return a text's band hashes, uint64 `[BANDS]`; texts that share one are near duplicates.

    MinHash over runs of `SHINGLE` tokens in `BANDS` bands of `ROWS` (Broder 1997; Leskovec, Rajaraman and
    Ullman, Mining of Massive Datasets, §3.4). A text shorter than a run is hashed whole.
    """
    width = min(SHINGLE, len(tokens))
    lows = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(tokens) - width + 1, CHUNK):
        runs = _runs(tokens[start : start + CHUNK + width - 1].astype(np.uint64), width)
        np.minimum(lows, _mix(runs[:, None] ^ _SEEDS).min(axis=0), out=lows)
    bands = np.arange(BANDS, dtype=np.uint64)
    for row in lows.reshape(BANDS, ROWS).T:
        bands = _mix(bands ^ row)
    return bands


def _runs(tokens: np.ndarray, width: int) -> np.ndarray:
    hashed = np.zeros(len(tokens) - width + 1, np.uint64)
    for offset in range(width):
        hashed = _mix(hashed ^ tokens[offset : offset + len(hashed)])
    return hashed


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble uint64 values one to one (the finalizer of splitmix64, Steele et al. 2014)."""
    x = x + PRIME
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


_SEEDS = _mix(np.arange(BANDS * ROWS, dtype=np.uint64))
