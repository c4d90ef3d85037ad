"""Which packets of a stream a decoder must be given to show the frames that are wanted, and where it may begin anew."""

from typing import NamedTuple

import numpy as np

from .nal_units import CLEAN, SETS, SPARE

HIDDEN = 8  # decoded for the sake of others, but left out of the presentation by the container's edit list
SKIP, FEED, FRESH = 0, 1, 2
# Emptying a decoder costs about as much as a few frames: shorter runs of packets are rather decoded.
SHORT = 24


class Packets(NamedTuple):
    """The packets of a stream in decoding order.

    Attributes:
      pts: int64[packets], presentation times.
      role: uint8[packets], flags CLEAN, SPARE, SETS, HIDDEN.
    """

    pts: np.ndarray
    role: np.ndarray

    def times(self) -> np.ndarray | None:
        """Return the times of the frames in presentation order, int64[frames], or None where only decoding tells them.

        They are those of the packets that are not hidden, if these differ and nothing is shown before the first packet.
        """
        if not len(self.pts) or not self.role[0] & CLEAN or self.pts[0] != self.pts.min():
            return None
        shown = self.pts[self.role & HIDDEN == 0]
        shown.sort()
        return None if np.any(shown[1:] == shown[:-1]) else shown


def plan_feeding(packets: Packets, wanted: np.ndarray) -> np.ndarray:
    """Return for each packet up to the last that is needed SKIP, FEED, or FRESH: empty the decoder first, then feed.

    Args:
      packets: those of a stream whose `times` are known.
      wanted: int64[n], some of these times, ascending, at least one.
    """
    pts, role = packets
    need = (wanted[np.searchsorted(wanted, pts) % len(wanted)] == pts) & (role & HIDDEN == 0)
    starts = np.flatnonzero(_borders(packets, need))
    ends = np.append(starts[1:], len(pts))
    feed = ~((role & SPARE > 0) & ~need)
    steps = np.zeros(len(pts), np.uint8)
    fed = 0  # all before this packet has been dealt with
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        needed = np.flatnonzero(need[start:end])
        if not len(needed):
            continue
        stop = start + int(needed[-1]) + 1
        if start - fed <= SHORT:
            steps[fed:stop] = feed[fed:stop]
        else:
            # What is shown before a fresh start refers to what came before it; nothing shown later refers to it.
            steps[start:stop] = feed[start:stop] & (pts[start:stop] >= pts[start])
            steps[start] = FRESH
        fed = stop
    return steps[:fed]


def _borders(packets: Packets, need: np.ndarray) -> np.ndarray:
    """Return where a decoder may begin anew: clean packets that come before all that is needed from there on."""
    pts, role = packets
    clean = role & CLEAN > 0
    if np.any(role[1:] & SETS):  # parameter sets travel with the packets: only those that bring their own will do
        clean &= role & SETS > 0
    earliest = np.minimum.accumulate(np.where(need, pts, np.iinfo(np.int64).max)[::-1])[::-1]
    borders = clean & (earliest >= pts)
    borders[0] = True
    return borders
