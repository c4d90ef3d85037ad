"""What a language model is asked about a chunk, and how its reply is read."""

import hashlib
import json
import unicodedata
from typing import Any

PROMPT = """Below is a passage from a book. Write one question about it, and its answer.

- The passage alone must hold the answer.
- The reader of the question knows the whole book and does not know which passage you saw: call people, places and \
things by their names, and never write "the passage" or "the text".
- The answer is short: a name, a number or a few words, as they stand in the passage.
- The question must not give the answer away.

Reply with nothing but one JSON object: {"question": "...", "answer": "..."}

Passage:

{}"""
REPAIR = """That reply is not valid: {} Reply again, with nothing but one JSON object that has exactly the keys \
"question" and "answer", each with a text that is not empty."""
LONGEST = {"question": 500, "answer": 500}  # characters
SHOWN = 2000  # characters of a reply that is not valid, which the model is shown once more
SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
    "additionalProperties": False,
}
FORMATS: dict[str, dict[str, Any]] = {  # what a server is told, by `questions.structured`
    "json_schema": {
        "type": "json_schema",
        "json_schema": {"name": "question_and_answer", "strict": True, "schema": SCHEMA},
    },
    "json_object": {"type": "json_object"},
}

Messages = list[dict[str, str]]


def digest(prompt: str) -> str:
    """Name a prompt's wording, 32 hex digits."""
    return hashlib.blake2b(prompt.encode(errors="replace"), digest_size=16).hexdigest()


def first_messages(prompt: str, text: str) -> Messages:
    """Put a text into the place that a prompt holds for it."""
    before, _, after = prompt.partition("{}")
    return [{"role": "user", "content": (before + text + after).encode(errors="replace").decode()}]


def repair_messages(messages: Messages, reply: str, flaw: str) -> Messages:
    """Show a model its reply and what is wrong with it."""
    shown = {"role": "assistant", "content": reply[:SHOWN] or "(nothing)"}
    return [*messages, shown, {"role": "user", "content": REPAIR.format(flaw)}]


def read_pair(content: str) -> tuple[str, str]:
    """Return the question and the answer of a reply, on one line each.

    What models put around JSON, whatever they are told, is taken off: a fence, and thoughts before it.

    Raises:
      ValueError: where it is not an object with these two texts and nothing else; says in a sentence what is wrong.
    """
    try:
        found = json.loads(_bare(content))
    except (ValueError, RecursionError):
        raise ValueError("It is not JSON, or it was cut off." if content.strip() else "It is empty.") from None
    if not isinstance(found, dict) or set(found) != set(LONGEST):
        raise ValueError('It must be an object with the keys "question" and "answer" and no others.')
    return _text(found, "question"), _text(found, "answer")


def _bare(content: str) -> str:
    text = content.strip()
    if text.startswith("<think>"):
        text = text.partition("</think>")[2].strip()
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json")
    return text


def _text(found: dict[str, Any], key: str) -> str:
    value = found[key]
    text = " ".join(value.split()) if isinstance(value, str) else ""
    if not text:
        raise ValueError(f'"{key}" must be a text that is not empty.')
    if len(text) > LONGEST[key]:
        raise ValueError(f'"{key}" has {len(text)} characters; {LONGEST[key]} are allowed.')
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        raise ValueError(f'"{key}" holds control characters, or halves of characters.')
    return text
