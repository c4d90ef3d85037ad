"""What a decoder needs a packet for, as the headers of its NAL units tell.

Sources: ITU-T H.264 (7.3.1, table 7-1), ITU-T H.265 (7.3.1.2, table 7-1), ISO/IEC 14496-15 (the length-prefixed form).
"""

from collections.abc import Iterator

CLEAN = 1  # a decoder may begin here: nothing that is shown after this packet refers to what came before it
SPARE = 2  # no other frame refers to it
SETS = 4  # carries parameter sets
BROKEN = -1  # stands for the header of a NAL unit that is longer than its packet


def length_size(codec: str, extradata: bytes | None) -> int:
    """Return the bytes of a NAL unit's length in packets of this stream, 0 where start codes part them."""
    if not extradata or extradata[0] != 1:
        return 0
    at = 4 if codec == "h264" else 21
    return (extradata[at] & 3) + 1 if len(extradata) > at else 0


def nal_headers(packet: memoryview, size: int) -> Iterator[int]:
    """Yield the first byte of each NAL unit of a packet, and BROKEN where one is longer than the packet."""
    yield from _measured(packet, size) if size else _parted(bytes(packet))


def _measured(packet: memoryview, size: int) -> Iterator[int]:
    at, end = 0, len(packet)
    while at + size < end:
        start = at + size
        at = start + int.from_bytes(packet[at:start], "big")
        yield packet[start] if start < at <= end else BROKEN


def _parted(packet: bytes) -> Iterator[int]:
    at = packet.find(b"\0\0\1")
    while 0 <= at < len(packet) - 3:
        yield packet[at + 3]
        at = packet.find(b"\0\0\1", at + 3)


def h264_role(packet: memoryview, size: int) -> int:
    """Return CLEAN for an IDR picture, SPARE where every slice has nal_ref_idc 0, SETS."""
    role, types, referred = 0, set(), False
    for header in nal_headers(packet, size):
        if header == BROKEN:
            return 0
        types.add(header & 31)
        referred |= bool(header & 0x60) and 1 <= header & 31 <= 5
    role |= CLEAN * (5 in types) | SETS * (not types.isdisjoint({7, 8, 13, 15}))
    # Spare packets hold plain slices, SEI, delimiters or filler and nothing that a later packet could miss.
    return role | SPARE * (1 in types and types <= {1, 6, 9, 12} and not referred)


def hevc_role(packet: memoryview, size: int) -> int:
    """Return CLEAN for an intra random access picture, SETS."""
    headers = list(nal_headers(packet, size))
    types = {header >> 1 & 63 for header in headers}
    if BROKEN in headers:
        return 0
    return CLEAN * any(16 <= t <= 21 for t in types) | SETS * (not types.isdisjoint({32, 33, 34}))
