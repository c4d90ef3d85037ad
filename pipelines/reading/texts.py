"""What makes a string of a row a text that a tokenizer takes."""

from ...packing.ledger import FAILED
from ..media import Unfit


def checked(text: str, what: str) -> str:
    """Return a text as it is.

    Raises:
      Unfit: if it has a NUL byte, or half a surrogate pair; `what` names it.
    """
    if (nul := text.find("\0")) >= 0:
        raise Unfit(FAILED, "NUL byte", f"at character {nul} of {what}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Unfit(FAILED, "not Unicode", f"{what}: {error}") from None
    return text
