"""Deny lists: ids, URLs or content hashes that a source leaves out."""

from functools import lru_cache

import fsspec

from ..errors import UserError
from ..recipe import Recipe
from .units import digest


def with_deny_lists(recipe: Recipe) -> Recipe:
    """Put the entries of deny files into a recipe: lists are read once, in the submitter, and workers agree on them.

    A file has one entry a line; # begins a comment.

    Raises:
      UserError: if a file cannot be read.
    """
    sources = [s.model_copy(update={"deny": _deny_entries(s.deny)}) for s in recipe.sources]
    return recipe.model_copy(update={"sources": sources})


def _deny_entries(deny: str | list[str]) -> list[str]:
    if not isinstance(deny, str):
        return sorted(set(deny))
    try:
        with fsspec.open(deny, "r", encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except FileNotFoundError:
        raise UserError(f"the deny list {deny} does not exist: mend the path, or leave deny out") from None
    except (OSError, UnicodeError) as error:
        raise UserError(f"the deny list {deny} cannot be read: {error}") from error
    return sorted({line for line in lines if line and not line.startswith("#")})


@lru_cache(maxsize=64)
def deny_list(entries: tuple[str, ...]) -> tuple[frozenset[str], str]:
    """Make a deny list quick to ask, and digest it: once in a process."""
    return frozenset(entries), digest(list(entries))
