"""Samples of tars: every key one record, right ones whole, wrong ones named, whatever happens to the archive."""

import io
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander
from worldloom.pipelines.reading.archive import members
from worldloom.pipelines.reading.samples import Sample, key_of, read_samples

Members = list[tuple[str, bytes | str]]


def tar_of(members: Members, form: int = tarfile.GNU_FORMAT) -> bytes:
    """Make an archive; a member that is a string is a link there."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def read(data: bytes, form: str = "picture", most: int = 1000) -> list[Sample]:
    return list(read_samples(io.BytesIO(data), form, most))


def brief(samples: list[Sample]) -> list[tuple[str, bytes | str]]:
    """Name each sample with its picture's bytes, or its flaw in brackets."""
    return [(s.name, f"({s.flaw.reason})" if s.flaw else s.media.data if s.media else b"") for s in samples]


SHARD: Members = [
    (f"{n:05d}.{suffix}", random.Random(f"{n}{suffix}").randbytes(300))
    for n in range(6)
    for suffix in ("jpg", "txt", "json")
]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_samples_are_those_that_webdataset_reads(form: int) -> None:
    data = tar_of([*SHARD, ("deep/er.dir/a.b.PNG", b"x"), ("n\u00e9" * 20 + "/" + "n\u00e9" * 20 + ".Jpg", b"y")], form)
    files = tar_file_expander([{"url": "x", "stream": io.BytesIO(data)}])
    peers = {s["__key__"]: {k: v for k, v in s.items() if k[0] != "_"} for s in group_by_keys(files)}
    found = read(data)
    assert [s.key for s in found] == list(peers)
    for s in found[:6]:
        assert s.media and {"jpg": s.media.data, "txt": s.texts["caption"], "json": s.texts["sidecar"]} == peers[s.key]
    assert brief(found)[6:] == [("deep/er.dir/a", b""), ("n\u00e9" * 20 + "/" + "n\u00e9" * 20, b"y")]


@settings(max_examples=300, deadline=None)
@given(st.text("ab./", min_size=1, max_size=12))
def test_keys_are_webdataset_s(name: str) -> None:
    assume(not name.rpartition("/")[2].startswith("."))  # there webdataset's key ends in a slash
    prefix, suffix = base_plus_ext(name)
    assert key_of(name) == ((prefix, f".{suffix}") if prefix is not None else (name, ""))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([("a.txt", b"t"), ("a.jpg", b"p")], [("a", b"p")]),
        ([("a.jpg", b"p"), ("a.cls", b"7"), ("a.seg.png", b"s"), ("a.npy", b"n")], [("a", b"p")]),
        ([("a.txt", b"t"), ("a.mp4", b"c")], [("a", b"")]),
        ([("a.jpg", b"p"), ("a.png", b"q"), ("b.webp", b"r")], [("a", "(two pictures)"), ("b", b"r")]),
        ([("a.jpg", b"p"), ("a.JPG", b"q")], [("a", "(two pictures)")]),
        ([("a.jpg", b"p"), ("a.txt", b"t"), ("a.txt", b"u")], [("a", "(two captions)")]),
        ([("a.json", b"{}"), ("a.json", b"{}")], [("a", "(two sidecars)")]),
        ([("a.jpg", b"p"), ("b.x", b""), ("a.txt", b"t")], [("a", b"p"), ("b", b""), ("a@1536", "(duplicate key)")]),
        ([("a.jpg", b"p" * 1001), ("a.txt", b"t"), ("b.jpg", b"q" * 1000)], [("a", "(too large)"), ("b", b"q" * 1000)]),
        ([("a.jpg", b"p"), ("a.txt", b"t" * (2**20 + 1)), ("b.jpg", b"q")], [("a", "(too large)"), ("b", b"q")]),
        ([("a.jpg", b"p"), ("a.json", b" " * (2**20 + 1))], [("a", "(too large)")]),
        ([("a.jpg", "/etc/passwd"), ("a.txt", b"t")], [("a", "(no plain member)")]),
        ([("../a.jpg", b"p"), ("/b.jpg", b"q")], [("../a", "(no plain member)"), ("/b", "(no plain member)")]),
        ([("README", b"r"), ("._a.jpg", b"m"), (".jpg", b"p")], [("README", b""), ("._a.jpg", b""), (".jpg", b"")]),
        ([("x/a.jpg", b"p"), ("y/a.jpg", b"q")], [("x/a", b"p"), ("y/a", b"q")]),
        ([], []),
    ],
)  # fmt: skip
def test_each_key_is_one_sample(written: Members, expected: list[tuple[str, bytes | str]]) -> None:
    assert brief(read(tar_of(written))) == expected


def test_an_archive_cut_anywhere_never_pairs_wrongly() -> None:
    data = tar_of(SHARD)
    whole = {s.key: (s.media, s.texts) for s in read(data)}
    end = len(data.rstrip(b"\0"))
    for place in [*range(0, end + 512, 512), *random.Random(0).sample(range(end), 30)]:
        found: list[Sample] = []
        with pytest.raises(tarfile.TarError):
            found.extend(read_samples(io.BytesIO(data[:place]), "picture", 1000))
        assert all(whole[s.key] == (s.media, s.texts) for s in found)
        assert [s.key for s in found] == list(whole)[: len(found)]
    assert len(found) < len(whole)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_byte_pairs_nothing_anew(data: st.DataObject) -> None:
    """A picture may be damaged by it, but stands with its own caption, or the archive breaks off."""
    archive = tar_of(SHARD)
    place = data.draw(st.integers(0, len(archive.rstrip(b"\0")) - 1))
    changed = archive[:place] + bytes([archive[place] ^ data.draw(st.integers(1, 255))]) + archive[place + 1 :]
    whole = {s.key: (s.media, s.texts) for s in read(archive)}
    differ = 0
    try:
        for s in read_samples(io.BytesIO(changed), "picture", 1000):
            differ += (s.media, s.texts) != whole.get(s.key)
    except (tarfile.TarError, UnicodeError):
        pass
    assert differ <= 1


def in_memory(data: bytes) -> Iterator[tuple[str, int, bytes, bytes]]:
    """Read an archive with Python's tarfile alone."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if not member.isdir():
                yield member.name, member.size, member.type, content.read() if content else b""


NAME = st.text("ab/.\u00e9 ", min_size=1, max_size=160).filter(lambda n: n.strip("/") and not n.endswith("/"))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(NAME, st.one_of(st.binary(max_size=1500), st.just("link"))), max_size=5),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_those_of_python_s_tarfile(written: Members, form: int) -> None:
    data = tar_of(written, form)
    found = [(m.name, m.size, m.type, c.read(2**20) if c else b"") for m, c in members(io.BytesIO(data))]
    assert found == list(in_memory(data))


def test_members_that_are_not_read_are_passed_over() -> None:
    names = [m.name for m, _ in members(io.BytesIO(tar_of(SHARD)))]
    assert names == [name for name, _ in SHARD]


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[bytes]]:
    """Return the contents of the temporary files that are there."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return lambda: sorted(path.read_bytes() for path in tmp_path.iterdir())


CLIPS: Members = [("a.mp4", b"A" * 800), ("a.txt", b"a"), ("b.webm", b"B" * 900), ("b.txt", b"b")]


def test_clips_become_temporary_files(left: Callable[[], list[bytes]]) -> None:
    found = read(tar_of(CLIPS), "clip")
    assert [Path(s.media.path).read_bytes() for s in found if s.media] == [b"A" * 800, b"B" * 900]
    assert [s.media.temporary for s in found if s.media] == [True, True]
    assert [Path(s.media.path).suffix for s in found if s.media] == [".mp4", ".webm"]
    assert left() == [b"A" * 800, b"B" * 900]


def test_a_clip_that_nobody_took_is_removed(left: Callable[[], list[bytes]]) -> None:
    data = tar_of(CLIPS)
    samples = read_samples(io.BytesIO(data), "clip", 1000)
    next(samples)
    assert left() == [b"A" * 800]
    samples.close()  # type: ignore[attr-defined]
    assert left() == [b"A" * 800]
    for place in (1024, len(data.rstrip(b"\0")) - 1000, len(data.rstrip(b"\0"))):
        before = len(left())
        taken = []
        with pytest.raises(tarfile.TarError):
            taken.extend(read_samples(io.BytesIO(data[:place]), "clip", 1000))
        assert len(left()) == before + len(taken)
