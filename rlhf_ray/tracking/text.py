"""Text of models and data made fit to be shown. It may hold anything: escape codes, right-to-left marks, no end."""

import unicodedata

REPLACEMENT = "\ufffd"
# Marks that reorder the text around them. Joiners, which emoji and some scripts need, stay.
_DIRECTION_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_KEPT_CONTROLS = frozenset("\n\t")


def harmless(text: str) -> str:
    """Replace control characters, lone surrogates and direction marks; newline and tab stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(REPLACEMENT if _is_harmful(character) else character for character in text)


def one_line(text: str, width: int) -> str:
    """Make the text harmless, on one line, cut at `width` characters."""
    # Twice the width fills a line even after runs of spaces are folded; a response may be very long.
    start = " ".join(harmless(text[: 2 * width]).split())
    return start if len(start) <= width and len(text) <= 2 * width else start[: width - 1] + "…"


def _is_harmful(character: str) -> bool:
    if character in _KEPT_CONTROLS:
        return False
    return character in _DIRECTION_MARKS or unicodedata.category(character) in ("Cc", "Cs")
