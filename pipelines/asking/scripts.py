"""Words in any script: what they are made of, and which scripts put no spaces between them."""

import unicodedata

JOINERS = "'\u2019\u02bc-\u2010_"  # apostrophes, hyphens and the underscore
APOSTROPHES = JOINERS[:3]
KINDS = (  # blocks, by their first and last code point, and the kind of their letters (Unicode 16, Blocks.txt)
    (0x0E00, 0x0EFF, "t"),  # Thai, Lao
    (0x1000, 0x109F, "t"),  # Myanmar
    (0x1780, 0x17FF, "t"),  # Khmer
    (0x3040, 0x309F, "g"),  # Hiragana: endings and particles, for the most part
    (0x30A0, 0x30FF, "k"),  # Katakana
    (0x31F0, 0x31FF, "k"),  # Katakana's extension
    (0x3400, 0x9FFF, "h"),  # Han
    (0xF900, 0xFAFF, "h"),  # Han
    (0x20000, 0x3FFFF, "h"),  # Han
    (0xAC00, 0xD7AF, "s"),  # Hangul syllables
)
UNSPACED = "tgkh"


class _Kinds(dict[int, str]):
    """Map each character to the one that stands for its kind; each is looked up once."""

    def __missing__(self, code: int) -> str:
        category = unicodedata.category(chr(code))[0]
        block = (kind for first, last, kind in KINDS if first <= code <= last)
        self[code] = next(block, "w") if category in "LM" else "d" if category == "N" else " "
        return self[code]


class _Apart(dict[int, str]):
    """Map characters so that `split` finds the words; each is looked up once."""

    def __missing__(self, code: int) -> str:
        char, kind = chr(code), _KINDS[code]
        self[code] = f" {char} " if kind in UNSPACED else char if kind in "wsd" else " "
        return self[code]


_KINDS = _Kinds({ord(joiner): "x" for joiner in JOINERS})
_APART = _Apart({ord(apostrophe): "" for apostrophe in APOSTROPHES})


def kinds(text: str) -> str:
    """Return one character for each of a text's, which tells its kind.

    `w`: a letter or mark of a script with spaces, `s`: a Hangul syllable, `h`, `k`, `g`, `t`: see `KINDS`,
    `d`: a digit, `x`: a joiner, a space: anything else.
    """
    return text.translate(_KINDS)


def words(text: str) -> list[str]:
    """List a text's words, casefolded and without punctuation; where no spaces part them, its characters."""
    return unicodedata.normalize("NFKC", text).casefold().translate(_APART).split()
