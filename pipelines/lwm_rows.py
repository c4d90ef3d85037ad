"""LWM's pre-tokenized JSONL: rows of texts and picture codes, and in each a spec that says how they follow each other.

The language of specs is that of lwm/data.py (VisionTextProcessor): items with commas between them, each a key of the
row, `a+b` for two texts with a space between, `<|bos|>` or `<|eos|>`; an item in brackets is not trained, and one with
`vision` in its name is a flat list of codes, 256 a frame. Before the first stands BOS, behind the last EOS. What is
wrong in that file is not done here: no BOS comes before other texts and markers, and codes that are no whole frames are
refused.
"""

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..packing.example import TEXT, Draft, Example
from ..packing.ledger import DROPPED, FAILED
from ..packing.report import Reject
from ..packing.row import Row, example_row
from ..packing.thin import uniform
from ..recipe import Recipe
from ..sources import LwmSource
from ..tokenizers.text import TextTokenizer
from ..tokenizers.vocabulary import Vocabulary
from .admission import denied_by, judge_record, reject_unfit
from .media import Unfit
from .models import pictures_of, text_tokenizer, vocabulary_of
from .near import signature
from .pairs import Marks, frame_tokens
from .reading import tables
from .reading.damage import guarded
from .reading.texts import checked
from .records import BadRecord, Fields, Found
from .units import Part, fraction

BOS, EOS, VISION = "<|bos|>", "<|eos|>", "vision"
FRAME = 256  # codes of a frame (lwm/data.py: n_tokens_per_frame)
RATE = 4.0  # frames a second of LWM's clips (paper §4.2); the rows do not tell
ITEMS = 1024  # of a spec; LWM's have three


class Item(NamedTuple):
    """One item of a spec: its keys, or a special token's name, and is it trained?"""

    keys: tuple[str, ...]
    trained: bool

    @property
    def is_vision(self) -> bool:
        return VISION in self.keys[0]


def read_part(source: LwmSource, part: Part) -> Iterator[Fields | BadRecord]:
    """Yield every row of a part, in order; one that cannot be read comes as a `BadRecord`.

    Raises:
      OSError: if the storage is in trouble: then the unit fails and is done again, and nothing is committed.
    """
    rows = tables.read_rows(source, part)
    return guarded(part, (Fields(*row) if isinstance(row, tables.Row) else row for row in rows))


def rows(
    recipe: Recipe, source: LwmSource, records: Iterable[Found], denied: frozenset[str]
) -> Generator[Row | Reject]:
    """Turn rows into examples' rows or rejects, one for each and in their order: the job without the engine."""
    for found in records:
        yield row(recipe, source, found, denied)


def row(recipe: Recipe, source: LwmSource, found: Found, denied: frozenset[str]) -> Row | Reject:
    """Make a row an example's row, or say why not."""
    if kept_out := judge_record(found, source, recipe.seed, denied):
        return kept_out
    assert isinstance(found, Fields)
    try:
        items = parsed(spec(found, source, recipe.seed))
        values = [value(found.columns, item, source.record_bytes, recipe) for item in items]
    except Unfit as unfit:
        return reject_unfit(found, source, unfit, "read")
    example = render(items, values, found.record, recipe, source)
    exact = hashlib.blake2b(example.tokens.astype("<u4").tobytes() + example.trained.tobytes(), digest_size=16).digest()
    contents = [json.loads(span.ref)["content"] for span in example.spans]
    if entry := denied_by(denied, exact.hex(), *contents):
        return reject_unfit(found, source, Unfit(DROPPED, "denied", entry), "filter", exact)
    plain = recipe.duplicates == "near" and example.task == TEXT
    near = signature(example.tokens.astype(np.uint64)) if plain else np.empty(0, np.uint64)
    return example_row(example, vocabulary_of(recipe.vocabulary), exact, near)


def spec(found: Fields, source: LwmSource, seed: int) -> str:
    """Return the spec of a row; of several, the one at `index`, or where that is -1 one drawn for the record.

    Raises:
      Unfit: there is none.
    """
    told, index = found.columns.get(source.columns.fields), source.index
    if isinstance(told, list) and told:
        if index >= len(told):
            raise Unfit(FAILED, "no fields", f"{len(told)} specs, and index is {index}")
        told = told[int(fraction(seed, "fields", source.name, found.record) * len(told)) if index < 0 else index]
    if not isinstance(told, str):
        raise Unfit(FAILED, "no fields", f"{source.columns.fields} holds {type(told).__name__}, not a spec or several")
    return told


def parsed(spec: str) -> list[Item]:
    """Read a spec.

    Raises:
      Unfit: it has more items than any of sense.
    """
    items = spec.split(",", ITEMS)
    if len(items) > ITEMS:
        raise Unfit(FAILED, "no fields", f"a spec of more than {ITEMS} items")
    return [_item(item) for item in items]


def _item(item: str) -> Item:
    masked = item.startswith("[") and item.endswith("]")
    name = item[1:-1] if masked else item
    return Item((name,) if VISION in name or name in (BOS, EOS) else tuple(name.split("+")), not masked)


def value(columns: dict[str, Any], item: Item, most: int, recipe: Recipe) -> str | np.ndarray:
    """Look up what an item names: a text, or codes as frames `[n, 256]`; "" of a special token.

    Args:
      most: characters or codes at the most.

    Raises:
      Unfit: it is not there, or not what it must be.
    """
    if item.keys[0] in (BOS, EOS):
        return ""
    if missing := [key for key in item.keys if key not in columns]:
        raise Unfit(FAILED, "no such field", f"{missing[0]}; the row has {', '.join(sorted(columns))[:200]}")
    if item.is_vision:
        return frames(columns[item.keys[0]], item.keys[0], recipe)
    parts = [columns[key] for key in item.keys]
    if odd := [key for key, part in zip(item.keys, parts, strict=True) if not isinstance(part, str)]:
        raise Unfit(FAILED, "no text", f"{odd[0]} holds {type(columns[odd[0]]).__name__}, not a string")
    if sum(map(len, parts)) > most:
        raise Unfit(FAILED, "too large", f"over record_bytes = {most}")
    return checked(" ".join(parts), "+".join(item.keys))


def frames(codes: object, name: str, recipe: Recipe) -> np.ndarray:
    """Take a flat list of codes as frames `[n, 256]`.

    Raises:
      Unfit: they are no codes of the recipe's tokenizer, or no whole frames.
    """
    if recipe.vocabulary.vision is None:
        raise Unfit(FAILED, "pictures without a tokenizer", f"{name}, and the recipe names none in vocabulary.vision")
    pictures = pictures_of(recipe.vocabulary)
    if pictures.grid**2 != FRAME:
        raise Unfit(FAILED, "other frames", f"the tokenizer's have {pictures.grid**2} codes, and LWM's {FRAME}")
    if not isinstance(codes, list) or not all(type(code) is int and 0 <= code < pictures.codes for code in codes):
        raise Unfit(FAILED, "no codes", f"{name} is no flat list of whole numbers from 0 to {pictures.codes - 1}")
    if not codes or len(codes) % FRAME:
        raise Unfit(FAILED, "no whole frames", f"{name} has {len(codes)} codes, and a frame {FRAME}")
    return np.array(codes, np.int64).reshape(-1, FRAME)


def render(
    items: list[Item], values: list[str | np.ndarray], record: str, recipe: Recipe, source: LwmSource
) -> Example:
    """Lay a row out: BOS, its items, EOS. As everywhere here, BOS is never trained and the last EOS always."""
    text, vocabulary = text_tokenizer(recipe.vocabulary.text), vocabulary_of(recipe.vocabulary)
    draft, marks = Draft(vocabulary), Marks.of(text)
    draft.add([vocabulary.bos], trained=False)
    for item, found in zip(items, values, strict=True):
        if isinstance(found, str):
            draft.add(_said(item, found, text, vocabulary), item.trained and item.keys[0] != BOS)
            continue
        kept = found if source.frames is None else found[uniform(min(source.frames, len(found)), len(found))]
        draft.add(marks.begin, item.trained)
        draft.add(frame_tokens(kept, vocabulary), item.trained, *_told(kept, found))
        draft.add(marks.end, item.trained)
    draft.add([vocabulary.eos], trained=True)
    return draft.example(task_of(items, values), source.name, record)


def _said(item: Item, found: str, text: TextTokenizer, vocabulary: Vocabulary) -> np.ndarray | list[int]:
    special = {BOS: [vocabulary.bos], EOS: [vocabulary.eos]}
    return special[item.keys[0]] if item.keys[0] in special else text.encode(found)


def _told(kept: np.ndarray, found: np.ndarray) -> tuple[str, str]:
    """Return the kind of the span over some frames, and what it says of them."""
    content = hashlib.blake2b(found.astype("<u2").tobytes(), digest_size=16).hexdigest()
    if len(found) == 1:
        return "image", json.dumps({"content": content})
    rate = RATE * max(1, len(kept) - 1) / (len(found) - 1)
    told = {
        "start": 0.0,
        "rate": rate,
        "frames": len(kept),
        "of": len(found),
        "sampling": "uniform",
        "content": content,
    }
    return "video", json.dumps(told)


def task_of(items: list[Item], values: list[str | np.ndarray]) -> str:
    """Name the task of a row by what it shows and what comes last; plain text, all of it trained, may be cut."""
    sizes = {place: len(found) for place, found in enumerate(values) if not isinstance(found, str)}
    said = [place for place, item in enumerate(items) if place not in sizes and item.keys[0] not in (BOS, EOS)]
    if not sizes:
        return TEXT if all(item.trained for item in items) else "text-to-text"
    medium = "image" if set(sizes.values()) == {1} else "video"
    if not said:
        return medium
    return f"{medium}-to-text" if said[-1] > max(sizes) else f"text-to-{medium}"
