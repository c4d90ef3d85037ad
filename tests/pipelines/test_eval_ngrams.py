"""What the eval side has is taken out of train: exactly what a set of tuples says, and every token counted."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.errors import RunFailed, UserError
from worldloom.packing.dataset import Dataset
from worldloom.packing.example import TEXT, Draft, Example
from worldloom.packing.manifest import shards_of
from worldloom.packing.row import row_examples
from worldloom.packing.storage import Folder
from worldloom.packing.verify import verify
from worldloom.pipelines import beam_jobs, eval_ngrams
from worldloom.pipelines.build import pack, pack_job, with_eval_ngrams
from worldloom.pipelines.eval_ngrams import (
    Search,
    find_in_memory,
    list_name,
    matches,
    merge,
    read,
    read_said,
    runs,
    sliced,
)
from worldloom.pipelines.job import run_in_memory
from worldloom.pipelines.split import in_eval
from worldloom.recipe import PackSection, Recipe
from worldloom.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=300, bos=1, eos=2, text_digest="test", codes=64, vision_digest="codes")
SHARE, N, LENGTH = 0.3, 5, 32
Rows = list[tuple[Example, bytes]]


def text(rng: np.random.Generator, record: str) -> Example:
    """Draw a text of few different words, so that runs of five come again."""
    draft = Draft(VOCABULARY)
    draft.add([1], False)
    draft.add(rng.integers(3, 8, int(rng.integers(3, 150))), True)
    draft.add([2], True)
    return draft.example(TEXT, "books", record)


def chat(rng: np.random.Generator, record: str) -> Example:
    """Draw a chat: what is asked is not trained, and a picture parts the words of an answer."""
    draft = Draft(VOCABULARY)
    draft.add([1, *rng.integers(3, 8, 9)], False)
    start = draft.length
    draft.add(rng.integers(3, 8, int(rng.integers(2, 8))), True)
    if rng.random() < 0.5:
        draft.add([300, 365], True, "image", "{}")
        draft.add(rng.integers(3, 8, 4), True)
    draft.add([2], True)
    draft.span(start, "assistant")
    return draft.example("image-chat", "chats", record)


def exact(record: str) -> bytes:
    return blake2b(record.encode(), digest_size=16).digest()


def toy(seed: int) -> dict[str, Rows]:
    rng = np.random.default_rng(seed)
    made = {f"books-{u}": [text(rng, f"b{u}.{i}") for i in range(8)] for u in range(2)}
    made["chats-0"] = [chat(rng, f"c{i}") for i in range(30)]
    return {unit: [(e, exact(e.record)) for e in found] for unit, found in made.items()}


def parts(e: Example) -> list[list[int]]:
    """Cut an example where a token is not trained or of a picture: places of what is left together."""
    found: list[list[int]] = [[]]
    for place, (token, flag) in enumerate(zip(e.tokens.tolist(), e.trained.tolist(), strict=True)):
        if flag and token < 300:
            found[-1].append(place)
        elif found[-1]:
            found.append([])
    return found


def windows(e: Example) -> list[tuple[int, tuple[int, ...]]]:
    """List each run of N tokens, and where it starts."""
    return [
        (part[i], tuple(int(e.tokens[p]) for p in part[i : i + N]))
        for part in parts(e)
        for i in range(len(part) - N + 1)
    ]


def naive(rows: Rows, seed: int) -> tuple[Counter[Any], set[str], int, set[tuple[int, ...]]]:
    """Say what the train side must hold, which examples are dropped for what they share, and how much is cut out."""
    held = {e.record for e, h in rows if in_eval(seed, SHARE, h.hex())}
    listed = {run for e, _ in rows if e.record in held for _, run in windows(e)}
    pieces: Counter[Any] = Counter()
    dropped, cut = set(), 0
    for e, _ in rows:
        if e.record in held:
            continue
        covered = {start + k for start, run in windows(e) if run in listed for k in range(N)}
        free = "".join("x" if place in covered else "." for place in range(len(e.tokens)))
        left = [(len("x".join(free.split("x")[:i])) + (i > 0), word) for i, word in enumerate(free.split("x"))]
        ranges = [(low, low + len(word)) for low, word in left if len(word) >= N] if covered else [(0, len(free))]
        if covered and (e.task != TEXT or not ranges):
            dropped.add(e.record)
            continue
        cut += len(free) - sum(high - low for low, high in ranges)
        for low, high in ranges:
            for at in range(low, high, LENGTH):
                if (end := min(at + LENGTH, high)) - at > 1:
                    pieces[e.record, at, tuple(e.tokens[at:end].tolist())] += 1
    return pieces, dropped, cut, listed


def section(**more: Any) -> PackSection:
    return PackSection.model_validate({"length": LENGTH, "split": "train", "remove_eval_ngrams": N, **more})


@pytest.mark.parametrize("seed", range(3))
def test_train_holds_what_a_set_of_tuples_leaves(tmp_path: Path, write_examples: Callable[..., str], seed: int) -> None:
    units = toy(seed)
    url, out = str(tmp_path / "examples"), str(tmp_path / "packed")
    write_examples(url, units, VOCABULARY, seed, SHARE)
    manifest = pack(url, out, section(), [], 1)
    expected, dropped, cut, listed = naive([row for rows in units.values() for row in rows], seed)
    pieces = [piece for row in Dataset(out) for piece in row_examples(row)]
    assert Counter((p.record, p.start, tuple(p.tokens.tolist())) for p in pieces) == expected
    assert all(p.trained.tolist() == [False] + [True] * (len(p.tokens) - 1) for p in pieces if p.task == TEXT)
    ledger = manifest["ledger"]
    reason = "dropped: shares 5 tokens with the eval side"
    assert (ledger["tokens_cut"], ledger["reasons"].get(reason, 0)) == (cut, len(dropped)) and cut and dropped
    assert ledger["read"] == ledger["kept"] + ledger["dropped"]
    assert ledger["tokens_read"] == ledger["tokens_dropped"] + sum(len(p.tokens) for p in pieces)
    assert not {run for p in pieces for _, run in windows(p)} & listed
    assert verify(out) == [] and manifest["remove_eval_ngrams"] == N
    assert (
        f"{cut:,} tokens were cut out: runs of 5 that the eval side has" in (tmp_path / "packed/README.md").read_text()
    )


ENGINES = {
    "in memory": [],
    "multi-process": ["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.filterwarnings("ignore")  # the engines' own
def test_an_engine_lists_what_a_plain_loop_does(
    tmp_path: Path, write_examples: Callable[..., str], monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr("worldloom.packing.shard.BATCH_TOKENS", 300)  # several record batches in a shard
    units = toy(7)
    url = write_examples(str(tmp_path / "examples"), units, VOCABULARY, 7, SHARE)
    search = Search(url, Dataset(url).root, N, 7, SHARE)
    paths = [path for source in search.parts() for path, _ in shards_of(search.folder, source)]
    plain = find_in_memory(search, paths)
    listed = naive([row for rows in units.values() for row in rows], 7)[3]
    assert len(plain) == len(listed) and (np.diff(plain.astype(object)) > 0).all()
    monkeypatch.setattr(beam_jobs, "RUNS", 300)
    for tokens in (10, 1000) if engine == "in memory" else (1000,):  # in one slice, in three
        said = beam_jobs.run_eval_ngrams(search, ENGINES[engine], tokens)
        found = read(search.folder, N, said.content)
        assert isinstance(found, np.memmap) and found.tolist() == plain.tolist() and said.hashes == len(plain)
    assert not [name for name in search.folder.names() if name.startswith(".tmp")]


def test_each_shard_is_read_once_and_a_slice_holds_its_own_hashes_only(
    tmp_path: Path, write_examples: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = write_examples(str(tmp_path / "examples"), toy(7), VOCABULARY, 7, SHARE)
    search = Search(url, Dataset(url).root, N, 7, SHARE)
    asked: list[str] = []
    sizes: list[int] = []
    hashes, merged = eval_ngrams.hashes, eval_ngrams.merge

    def counted(search: Search, path: str) -> Iterator[np.ndarray]:
        asked.append(path)
        return hashes(search, path)

    def measured(search: Search, slices: int) -> eval_ngrams.Listed:
        sizes.extend(search.folder.size(search.draft(number)) or 0 for number in range(slices))
        return merged(search, slices)

    monkeypatch.setattr(eval_ngrams, "hashes", counted)
    monkeypatch.setattr(eval_ngrams, "merge", measured)
    monkeypatch.setattr(beam_jobs, "RUNS", 100)
    listed = beam_jobs.run_eval_ngrams(search, [], 1000)
    assert sorted(asked) == sorted(path for source in search.parts() for path, _ in shards_of(search.folder, source))
    assert len(sizes) == 10 and sum(sizes) == 8 * listed.hashes and max(sizes) < 2 * listed.hashes


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.booleans(), min_size=60, max_size=60), st.integers(1, 17))
@settings(max_examples=100, deadline=None)
def test_equal_runs_have_equal_hashes_and_others_have_not(tokens: list[int], marks: list[bool], n: int) -> None:
    marked = np.array(marks[: len(tokens)], bool) | (np.arange(len(tokens)) % 7 > 0)
    starts, values = runs(np.array(tokens, np.uint16), marked, n)
    assert starts.tolist() == [i for i in range(len(tokens) - n + 1) if marked[i : i + n].all()]
    words = [tuple(tokens[i : i + n]) for i in starts]
    assert len(set(words)) == len(set(values.tolist())) == len(set(zip(words, values.tolist(), strict=True)))


@given(st.lists(st.integers(0, 9), max_size=20), st.sets(st.integers(0, 9), max_size=8))
def test_the_listed_values_are_found(values: list[int], listed: set[int]) -> None:
    found = matches(np.array(values, np.uint64), np.array(sorted(listed), np.uint64))
    assert sorted(found.tolist()) == [i for i, value in enumerate(values) if value in listed]


def splitmix(number: int) -> int:
    """Return what SplitMix64 gives after `number` others, as its paper writes it."""
    z = (number + 1) * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_the_hash_is_the_one_in_the_docs() -> None:
    assert splitmix(0) == 0xE220A8397B1DCDAF  # published with the generator
    for n in (1, 5, 6, 13):
        tokens = np.random.default_rng(n).integers(0, 40000, n).astype(np.uint16)
        by_hand = sum(splitmix(int(t)) * 0x9E3779B97F4A7C15 ** (n - 1 - i) for i, t in enumerate(tokens)) % 2**64
        assert runs(tokens, np.ones(n, bool), n)[1].tolist() == [by_hand]


def test_hashes_spread_and_do_not_depend_on_the_batch() -> None:
    tokens = np.random.default_rng(0).integers(0, 32000, 100_000).astype(np.uint16)
    starts, values = runs(tokens, np.ones(len(tokens), bool), 13)
    assert len(np.unique(values)) == len(values)
    bits = np.unpackbits(values.view(np.uint8)).reshape(-1, 64).mean(0)
    assert (abs(bits - 0.5) < 0.01).all()
    assert runs(tokens[500:700], np.ones(200, bool), 13)[1].tolist() == values[500:688].tolist()
    sizes = np.bincount(sliced(values, 7).astype(np.int64), minlength=7)
    assert (np.diff(sliced(np.sort(values), 7).astype(np.int64)) >= 0).all() and sizes.min() > 0.9 * len(starts) / 7


def test_the_list_is_made_once_and_units_follow_its_content(
    tmp_path: Path, write_examples: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def in_memory(search: Search, flags: list[str], tokens: int) -> eval_ngrams.Listed:
        made.append(search.n)
        drafts = [eval_ngrams.write_shard(search, p, 1) for s in search.parts() for p, _ in shards_of(search.folder, s)]
        eval_ngrams.write_slice(search, 0, 1, drafts)
        return merge(search, 1)

    monkeypatch.setattr(beam_jobs, "run_eval_ngrams", in_memory)
    url = write_examples(str(tmp_path / "examples"), toy(1), VOCABULARY, 1, SHARE)
    jobs = [with_eval_ngrams(pack_job(url, str(tmp_path / "out"), section()), []) for _ in range(2)]
    assert made == [N] and jobs[0] == jobs[1]
    longer = with_eval_ngrams(pack_job(url, str(tmp_path / "out"), section(remove_eval_ngrams=9)), [])
    none = with_eval_ngrams(pack_job(url, str(tmp_path / "out"), section(remove_eval_ngrams=None)), [])
    other = replace(jobs[0], ngrams="x")
    keys = [next(job.units("books")).key for job in (jobs[0], jobs[1], longer, none, other)]
    assert made == [N, 9] and keys[0] == keys[1] and len(set(keys)) == 4 and none.ngrams == ""
    units = toy(1)
    units["books-0"] = [row for row in units["books-0"] if in_eval(1, SHARE, row[1].hex())]  # what is held stays
    write_examples(str(tmp_path / "fewer"), units, VOCABULARY, 1, SHARE)
    fewer = with_eval_ngrams(pack_job(str(tmp_path / "fewer"), str(tmp_path / "out"), section()), [])
    assert fewer.root != jobs[0].root and fewer.ngrams == jobs[0].ngrams
    with pytest.raises(RunFailed, match=r"eval-ngrams-5.npy is another list than when the job began"):
        run_in_memory(other)


def test_another_split_or_version_makes_another_list(
    tmp_path: Path, write_examples: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    units = toy(1)
    rows = [row for rows in units.values() for row in rows]
    counts = []
    for share in (SHARE, 0.6, SHARE):
        url = write_examples(str(tmp_path / "examples"), units, VOCABULARY, 1, share)
        job = with_eval_ngrams(pack_job(url, str(tmp_path / "out"), section()), [])
        held = [e for e, h in rows if in_eval(1, share, h.hex())]
        counts.append(len(read(Folder(url), N, job.ngrams)))
        assert counts[-1] == len({run for e in held for _, run in windows(e)})
    assert counts[0] == counts[2] < counts[1]
    search = Search(url, job.root, N, 1, SHARE)
    others = [replace(search, **changed) for changed in ({"root": "x"}, {"n": 6}, {"seed": 2}, {"share": 0.31})]
    keys = {each.key for each in (search, replace(search), *others)}
    monkeypatch.setattr(eval_ngrams, "__version__", "0.0.0")
    assert len(keys) == 5 and search.key not in keys


def test_a_list_that_no_worker_wrote_is_missed(tmp_path: Path, write_examples: Callable[..., str]) -> None:
    url = write_examples(str(tmp_path / "examples"), toy(1), VOCABULARY, 1, SHARE)
    search = Search(url, "", N, 1, SHARE)
    eval_ngrams.write_slice(search, 0, 2, [])
    with pytest.raises(RunFailed, match="can every worker write to"):
        merge(search, 2)
    with pytest.raises(RunFailed, match="can every worker write to"):
        eval_ngrams.write_slice(search, 1, 2, ["another-worker-has-it"])
    assert read_said(Folder(url), N) is None and not Folder(url).exists(list_name(N))


def test_an_empty_eval_side_takes_nothing_out(tmp_path: Path, write_examples: Callable[..., str]) -> None:
    url = write_examples(str(tmp_path / "examples"), toy(1), VOCABULARY, 1, 1e-9)
    search = Search(url, Dataset(url).root, N, 1, 1e-9)
    eval_ngrams.write_slice(search, 0, 1, [])
    job = with_eval_ngrams(pack_job(url, str(tmp_path / "out"), section()), []) if merge(search, 1) else None
    assert job and read(Folder(url), N, job.ngrams).tolist() == []
    assert pack(url, str(tmp_path / "out"), section(), [], 1)["ledger"]["tokens_cut"] == 0


def test_what_makes_no_sense_is_refused(tmp_path: Path, write_examples: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match="remove_eval_ngrams is of the train side: set split to train"):
        PackSection.model_validate({"length": 32, "remove_eval_ngrams": 13})
    with pytest.raises(ValueError, match="greater than or equal to 5"):
        section(remove_eval_ngrams=4)
    source = {"name": "b", "kind": "books", "path": "x"}
    with pytest.raises(ValueError, match="remove_eval_ngrams finds nothing while eval is 0; set eval"):
        Recipe.model_validate({"vocabulary": {"text": "x"}, "sources": [source], "pack": section().model_dump()})
    url = write_examples(str(tmp_path / "examples"), toy(1), VOCABULARY)
    with pytest.raises(UserError, match="was built with eval 0"):
        pack(url, str(tmp_path / "out"), section(), [], 1)
