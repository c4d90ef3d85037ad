"""The pack job without an engine: every token of every kept example once, or counted."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worldloom.errors import UserError
from worldloom.packing.dataset import Dataset
from worldloom.packing.example import TEXT, Draft, Example
from worldloom.packing.ledger import KEPT, Ledger
from worldloom.packing.manifest import write_index, write_manifest
from worldloom.packing.report import REJECTS, SHARDS, UNITS, Reject, UnitWriter, read_rejects, read_report
from worldloom.packing.row import example_row, row_examples
from worldloom.packing.shard import EXAMPLES
from worldloom.packing.storage import Folder
from worldloom.pipelines import duplicates
from worldloom.pipelines.job import finish, run_in_memory
from worldloom.pipelines.pack import PackJob
from worldloom.pipelines.split import in_eval
from worldloom.recipe import PackSection
from worldloom.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=300, bos=1, eos=2, text_digest="test", codes=64, vision_digest="codes")
Toy = dict[str, list[Example]]


def example(rng: np.random.Generator, length: int, source: str, record: str, task: str = TEXT) -> Example:
    """Draw a text, all of it trained, or a chat of one turn; chunks of it are spans."""
    draft = Draft(VOCABULARY)
    draft.add([1], trained=False)
    asked = 1 + int(rng.integers(1, length - 1)) if task != TEXT else 1
    while (left := length - draft.length - (task != TEXT)) > 0:
        size = min(int(rng.integers(1, left + 1)), asked - draft.length if draft.length < asked else left)
        draft.add(rng.integers(3, 300, size), draft.length >= asked, "chunk" if rng.random() < 0.5 else "", "{}")
    if task != TEXT:
        draft.add([2], trained=True)
        draft.span(asked, "assistant")
    return draft.example(task, source, record)


def toy(seed: int = 0) -> Toy:
    """Draw two sources in five units: lengths from one to many windows, two tasks."""
    rng, made = np.random.default_rng(seed), {}
    for unit, source in [("a-0", "a"), ("a-1", "a"), ("a-2", "a"), ("b-0", "b"), ("b-1", "b")]:
        lengths = [3, 4, 31, 32, 33, 34, 63, 64, 65, 200, *rng.integers(3, 100, 30).tolist()]
        tasks = [TEXT if source == "a" or rng.random() < 0.5 else "chat" for _ in lengths]
        made[unit] = [
            example(rng, n, source, f"{unit}/{i}", task) for i, (n, task) in enumerate(zip(lengths, tasks, strict=True))
        ]
    return made


def exact(record: str) -> bytes:
    """Stand in for the hash of a record's content: no two are the same."""
    return record.encode().ljust(16)[:16]


def write_toy(url: str, examples: Toy) -> Dataset:
    folder = Folder(url)
    folder.make(UNITS, SHARDS, REJECTS)
    for unit, found in examples.items():
        with UnitWriter(folder, unit, VOCABULARY, EXAMPLES) as writer:
            for e in found:
                writer.add(example_row(e, VOCABULARY, exact(e.record), np.empty(0, np.uint64)))
                writer.ledger.read += 1
                writer.ledger.count(KEPT)
            writer.commit(unit[0], key="k")
    reports = [report for unit in sorted(examples) if (report := read_report(folder, unit))]
    about = {"kind": "examples", "length": 0, "weights": "example", "fingerprint": VOCABULARY.fingerprint}
    write_manifest(folder, write_index(folder, reports), {**about, "vocabulary": VOCABULARY.__dict__})
    return Dataset(url)


class Packed:
    """What a pack job made: sequences, rejects, reports and the manifest."""

    def __init__(self, examples: str, url: str, section: dict[str, Any], **more: Any):
        made = PackSection.model_validate({"length": 32, **section})
        self.job = PackJob(examples, Dataset(examples).root, url, made, **more)
        run_in_memory(self.job)
        about = {
            "kind": "sequences",
            "length": made.length,
            "weights": "example",
            "fingerprint": VOCABULARY.fingerprint,
        }
        self.manifest = finish(self.job, {**about, "vocabulary": VOCABULARY.__dict__}, 0.0)
        dataset = Dataset(url)
        self.rows = [dataset.row(i) for i in range(len(dataset))]
        self.pieces = [e for row in self.rows for e in row_examples(row)]
        folder = Folder(url)
        units = [unit for part in self.job.parts() for unit in self.job.units(part)]
        reports = [report for unit in units if (report := read_report(folder, unit.name))]
        self.ledgers: list[Ledger] = [report.ledger for report in reports]
        self.rejects: list[Reject] = [reject for report in reports for reject in read_rejects(folder, report)]

    def reasons(self) -> dict[str, str]:
        return {r.record: r.reason for r in self.rejects}


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Toy, str]:
    monkeypatch.setattr("worldloom.packing.shard.BATCH_TOKENS", 300)  # several record batches in a shard
    url = str(tmp_path / "examples")
    write_toy(url, toy())
    return toy(), url


def expect_all_tokens_once(kept: list[Example], packed: Packed) -> None:
    """Put each record's pieces together again and compare them with the whole, token by token."""
    pieces: dict[str, list[Example]] = {}
    for piece in packed.pieces:
        pieces.setdefault(piece.record, []).append(piece)
    assert set(pieces) == {e.record for e in kept}
    left_out = 0
    for e in kept:
        end = 0
        for piece in sorted(pieces[e.record], key=lambda p: p.start):
            assert (piece.start, piece.task, piece.source) == (end, e.task, e.source)
            high = end + len(piece.tokens)
            np.testing.assert_array_equal(piece.tokens, e.tokens[end:high])
            assert piece.trained.tolist() == [False, *e.trained[end + 1 : high]]
            spans = [(max(s.start, end), min(s.end, high)) for s in e.spans if s.start < high and s.end > end]
            assert [(s.start + end, s.end + end) for s in piece.spans] == spans
            end = high
        lost = 1 if len(e.tokens) > 32 and len(e.tokens) % 32 == 1 else 0  # a remainder of one token trains nothing
        assert end == len(e.tokens) - lost
        left_out += lost
    assert sum(ledger.tokens_dropped for ledger in packed.ledgers) == left_out + sum(
        ledger.tokens_read for ledger in packed.ledgers
    ) - sum(len(e.tokens) for e in kept)


def test_every_token_of_every_kept_example_is_there_once(tmp_path: Path, examples: tuple[Toy, str]) -> None:
    made, url = examples
    packed = Packed(url, str(tmp_path / "packed"), {})
    everything = [e for found in made.values() for e in found]
    long = {e.record for e in everything if e.task != TEXT and len(e.tokens) > 32}
    assert long and packed.reasons() == dict.fromkeys(long, "longer than the sequence")
    expect_all_tokens_once([e for e in everything if e.record not in long], packed)


def test_windows_are_full_and_no_sequence_could_take_in_another(tmp_path: Path, examples: tuple[Toy, str]) -> None:
    _, url = examples
    packed = Packed(url, str(tmp_path / "packed"), {})
    last = {p.record: max(q.start for q in packed.pieces if q.record == p.record) for p in packed.pieces}
    assert all(len(p.tokens) == 32 for p in packed.pieces if p.start != last[p.record])
    used = [sum(s.length for s in row.segments) for row in packed.rows]
    assert all(len(row.tokens) == 32 and 0 < n <= 32 for row, n in zip(packed.rows, used, strict=True))
    assert all(not row.tokens[n:].any() for row, n in zip(packed.rows, used, strict=True))
    smallest = sorted(used)[:2]
    assert sum(smallest) > 32  # the two emptiest sequences do not fit into one
    assert sum(used) / (32 * len(used)) > 0.95


def test_the_ledgers_add_up(tmp_path: Path, examples: tuple[Toy, str]) -> None:
    made, url = examples
    packed = Packed(url, str(tmp_path / "packed"), {"split": "train"}, seed=3, eval=0.4)
    everything = [e for found in made.values() for e in found]
    for name in ("read", "kept", "dropped", "failed", "tokens_read", "tokens_dropped"):
        assert packed.manifest["ledger"][name] == sum(getattr(ledger, name) for ledger in packed.ledgers)
    ledger = packed.manifest["ledger"]
    assert ledger["read"] == len(everything) == ledger["kept"] + ledger["dropped"]
    assert ledger["tokens_read"] == sum(len(e.tokens) for e in everything)
    assert ledger["tokens_read"] - ledger["tokens_dropped"] == sum(len(p.tokens) for p in packed.pieces)
    assert ledger["kept"] == len({p.record for p in packed.pieces})
    counted = Counter(f"dropped: {r.reason}" for r in packed.rejects)
    assert ledger["reasons"] == dict(sorted(counted.items())) and len(counted) == 2
    for task, counts in ledger["tasks"].items():
        mine = [p for p in packed.pieces if p.task == task]
        assert counts["tokens"] == sum(len(p.tokens) for p in mine)
        assert counts["trained"] == sum(int(p.trained.sum()) for p in mine)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_sides_of_the_split_are_disjoint_and_together_all(
    tmp_path: Path, examples: tuple[Toy, str], share: float
) -> None:
    _, url = examples
    sides = [Packed(url, str(tmp_path / side), {"split": side}, seed=1, eval=share) for side in ("train", "eval")]
    whole = Packed(url, str(tmp_path / "all"), {}, seed=1, eval=share)
    records = [{p.record for p in side.pieces} for side in (*sides, whole)]
    assert not records[0] & records[1] and records[0] | records[1] == records[2]
    assert records[1] == {p.record for p in whole.pieces if in_eval(1, share, exact(p.record).hex())}
    assert abs(len(records[1]) / len(records[2]) - share) < 0.1
    total = Counter(p.tokens.tobytes() for side in sides for p in side.pieces)
    assert total == Counter(p.tokens.tobytes() for p in whole.pieces)


def test_a_larger_eval_side_holds_the_smaller_one() -> None:
    small, large = ({i for i in range(2000) if in_eval(0, share, str(i))} for share in (0.01, 0.1))
    assert small < large and abs(len(large) - 200) < 60
    assert not any(in_eval(0, 0.0, str(i)) for i in range(2000))
    assert all(in_eval(0, 1.0, str(i)) for i in range(2000))


def test_duplicates_are_dropped_and_counted(tmp_path: Path, examples: tuple[Toy, str]) -> None:
    made, url = examples
    rows = [("a-1", 3, "exact"), ("a-1", 9, "near"), ("b-0", 0, "exact")]
    found = [
        duplicates.Duplicate(unit, row, unit[0], made[unit][row].record, kind, "a", "a-0/0") for unit, row, kind in rows
    ]
    duplicates.write(Folder(url), found, "key")
    packed = Packed(url, str(tmp_path / "packed"), {}, duplicates="key")
    reasons = packed.reasons()
    assert {made[unit][row].record: f"{kind} duplicate" for unit, row, kind in rows}.items() <= reasons.items()
    assert [r.error for r in packed.rejects if "duplicate" in r.reason] == ["of a a-0/0"] * 3
    assert packed.manifest["ledger"]["reasons"]["dropped: exact duplicate"] == 2
    kept = [e for es in made.values() for e in es if e.record not in reasons]
    expect_all_tokens_once(kept, packed)


def test_sources_can_be_chosen(tmp_path: Path, examples: tuple[Toy, str]) -> None:
    made, url = examples
    packed = Packed(url, str(tmp_path / "packed"), {"sources": ["b"]})
    assert {p.source for p in packed.pieces} == {"b"}
    assert packed.manifest["ledger"]["read"] == len(made["b-0"]) + len(made["b-1"])


@pytest.mark.parametrize("frames", ["fit", 5])
def test_thinning_leaves_text_as_it_is(tmp_path: Path, examples: tuple[Toy, str], frames: Any) -> None:
    plain = Packed(examples[1], str(tmp_path / "plain"), {})
    thinned = Packed(examples[1], str(tmp_path / "thinned"), {"frames": frames})
    assert thinned.manifest["root"] == plain.manifest["root"]


def test_the_same_examples_make_the_same_sequences(tmp_path: Path, examples: tuple[Toy, str]) -> None:
    _, url = examples
    packed = [Packed(url, str(tmp_path / name), {}) for name in ("one", "two")]
    assert packed[0].manifest["root"] == packed[1].manifest["root"]
    assert [row.tokens.tobytes() for row in packed[0].rows] == [row.tokens.tobytes() for row in packed[1].rows]
    changed = str(tmp_path / "changed")
    write_toy(changed, toy(seed=1))
    assert Packed(changed, str(tmp_path / "three"), {}).manifest["root"] != packed[0].manifest["root"]


def test_more_units_change_nothing_but_where_things_lie(
    tmp_path: Path, examples: tuple[Toy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, url = examples
    monkeypatch.setattr("worldloom.pipelines.pack.LEAST_TOKENS", 1)
    monkeypatch.setattr("worldloom.pipelines.pack.PER_UNIT", 100)
    packed = Packed(url, str(tmp_path / "packed"), {})
    assert len(packed.ledgers) == 5
    expect_all_tokens_once([e for es in made.values() for e in es if e.record not in packed.reasons()], packed)


def test_a_unit_is_done_again_only_where_its_duplicates_changed(
    tmp_path: Path, examples: tuple[Toy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, url = examples
    monkeypatch.setattr("worldloom.pipelines.pack.LEAST_TOKENS", 1)
    monkeypatch.setattr("worldloom.pipelines.pack.PER_UNIT", 1)
    before = Packed(url, str(tmp_path / "packed"), {})
    duplicates.write(Folder(url), [duplicates.Duplicate("a-2", 0, "a", made["a-2"][0].record, "exact", "a", "x")], "k2")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "packed/units").iterdir()}
    after = Packed(url, str(tmp_path / "packed"), {}, duplicates="k2")
    touched = [path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp]
    assert touched == ["a-0000002.json"]
    assert after.manifest["root"] != before.manifest["root"]
    shards = {path.name for path in (tmp_path / "packed/shards").iterdir()}
    assert len(shards) == len(after.ledgers) == 5  # what no report names was swept


def test_no_example_is_no_sequence(tmp_path: Path) -> None:
    url = str(tmp_path / "examples")
    write_toy(url, {"a-0": []})
    packed = Packed(url, str(tmp_path / "packed"), {})
    assert (packed.rows, packed.manifest["ledger"]["read"]) == ([], 0)


def test_an_unfinished_job_is_refused(tmp_path: Path, examples: tuple[Toy, str]) -> None:
    _, url = examples
    section = PackSection.model_validate({"length": 32})
    job = PackJob(url, Dataset(url).root, str(tmp_path / "packed"), section)
    job.folder.make(UNITS, SHARDS, REJECTS)
    with pytest.raises(UserError, match=r"a-0000000 of .* is not done"):
        finish(job, {}, 0.0)
    assert not (tmp_path / "packed/manifest.json").exists()


def test_the_manifest_is_plain_json(tmp_path: Path, examples: tuple[Toy, str]) -> None:
    _, url = examples
    packed = Packed(url, str(tmp_path / "packed"), {})
    stored = json.loads((tmp_path / "packed/manifest.json").read_text())
    assert stored["root"] == packed.manifest["root"] and stored["ledger"] == packed.manifest["ledger"]
