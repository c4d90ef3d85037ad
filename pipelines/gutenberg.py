"""Project Gutenberg's header and footer, which are not the book's text."""

import re

START = re.compile(
    r"^[^\S\n]*\*{3}\s*START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*?\*{3}[^\S\n]*\n",
    re.M | re.S | re.I,
)
END = re.compile(
    r"^[^\S\n]*(?:\*{3}\s*END OF (?:THE|THIS) PROJECT GUTENBERG EBOOK|End of (?:the )?Project Gutenberg['\u2019]?s?\b)",
    re.M | re.I,
)
REACH = 2**15  # characters at either end in which the marks are looked for


def strip(text: str) -> str:
    """Take off what stands before the start mark and after the end mark; a text without marks stays as it is.

    The marks are those of www.gutenberg.org's plain-text files since 2003.
    """
    start = START.search(text, 0, REACH)
    low = start.end() if start else 0
    end = END.search(text, max(low, len(text) - REACH))
    if not start and not end:
        return text
    body = text[low : end.start() if end else len(text)].strip("\r\n")
    return f"{body}\n" if body.strip() else ""
