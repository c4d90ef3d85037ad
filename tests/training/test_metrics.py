"""What TensorBoard is shown against the diary's lines, read back from the event file byte by byte."""

import struct

from tensorboardX.proto.event_pb2 import Event
from worldloom.training.metrics import Board


def events(folder):
    """Read records of the event files: a length of 8 bytes, its checksum of 4, the event, its checksum of 4."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_the_board_shows_every_number_and_hides_what_is_done_again(tmp_path):
    with Board(tmp_path, 0) as board:
        board.add({"step": 1, "loss": 2.5, "rows_by_set": [3, 1]})
        board.add({"step": 2, "loss": 2.25})
        board.add({"step": 2, "held_out_loss": 2.75})
    shown = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert shown == [
        (1, "loss", 2.5),
        (1, "rows_by_set/0", 3),
        (1, "rows_by_set/1", 1),
        (2, "loss", 2.25),
        (2, "held_out_loss", 2.75),
    ]
    before = set(tmp_path.iterdir())
    with Board(tmp_path, 1) as board:
        board.add({"step": 2, "loss": 2.0})
    (again,) = set(tmp_path.iterdir()) - before
    (tmp_path / "again").mkdir()
    again.rename(tmp_path / "again" / again.name)
    found = list(events(tmp_path / "again"))
    purged = [e.step for e in found if e.WhichOneof("what") == "session_log"]
    assert purged == [2], "TensorBoard drops from this step on what earlier files hold"
    assert [(e.step, v.simple_value) for e in found for v in e.summary.value] == [(2, 2.0)]
