"""Private data in texts: found by form and checksum, masked or given as a reason to drop the row.

Full-width letters and digits count as the plain ones.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal

from stdnum import luhn
from stdnum.iso7064 import mod_11_2

from rlhf_ray.redaction.texts import TOKEN_FORMS

PrivateKind = Literal["secret", "email", "ip", "identity", "card", "mobile"]

_HALF_WIDTH = {full: full - 0xFEE0 for full in range(0xFF01, 0xFF5F)}
# Each stands for one character, so that places in the folded text are places in the given one.
_FOLD = {**_HALF_WIDTH, 0x3000: 0x20, 0x2010: 0x2D, 0x2011: 0x2D, 0x2013: 0x2D, 0x2212: 0x2D}

PROVINCES = frozenset(
    [*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71, 81, 82, 83, 91]
)
"""First two digits of an identity number (GB/T 2260)."""


def is_identity(number: str) -> bool:
    """Tell whether 18 characters are a Chinese identity number (GB 11643).
    It has a province, a date of birth and a check digit by ISO 7064 MOD 11-2.
    """
    # The library's `cn.ric` wants a county that it knows, finds no foreign resident (91), and fails on some numbers.
    if int(number[:2]) not in PROVINCES or not mod_11_2.is_valid(number.upper()):
        return False
    try:
        born = date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    return born.year >= 1850


def is_card(number: str) -> bool:
    """Tell whether digits, maybe with spaces or hyphens, are a bank card's: 13 to 19, issuer's first digit, Luhn."""
    # Digits of any script count, as they do in the patterns.
    digits = "".join(str(int(digit)) for digit in number if digit.isdigit())
    return 13 <= len(digits) <= 19 and digits[0] in "234569" and len(set(digits)) > 1 and bool(luhn.is_valid(digits))


def _is_ip6(text: str) -> bool:
    # `a::b` is more often a name of a program than an address.
    if not any(character.isdigit() for character in text):
        return False
    try:
        return ipaddress.IPv6Address(text).packed != bytes(16)
    except ValueError:
        return False


def _holds_digit(text: str) -> bool:
    return any(character.isdigit() for character in text)


@dataclass(frozen=True)
class _Pattern:
    kind: PrivateKind
    form: re.Pattern[str]
    """Group `private`, if there is one, is what is private; else all of the match."""
    is_real: Callable[[str], bool] = lambda _: True


_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
PATTERNS = (
    _Pattern(
        "secret", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S)
    ),
    _Pattern("secret", re.compile(rf"(?<![A-Za-z0-9])(?:{TOKEN_FORMS})")),
    _Pattern("secret", re.compile(r"(?i)(?<![A-Za-z])bearer\s+(?P<private>[A-Za-z0-9._~+/-]{16,}=*)"), _holds_digit),
    _Pattern("secret", re.compile(r"[a-z][a-z0-9+.-]{1,20}://[^\s/:@]*:(?P<private>[^\s/@]{3,})@")),
    _Pattern(
        "secret",
        re.compile(
            r"(?i)(?:api[_ -]?key|access[_ -]?key|secret|token|passw(?:or)?d|密码|密钥|口令|令牌)"
            r"[\"']?\s*[:=]\s*[\"']?(?P<private>[!#-&(-+\--:<-~]{8,})"
        ),
        _holds_digit,
    ),
    _Pattern(
        "email",
        re.compile(
            r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_%+-])?"
            r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9-])"
        ),
    ),
    _Pattern("ip", re.compile(rf"(?<![\d.])(?:{_BYTE}\.){{3}}{_BYTE}(?!\d|\.\d)")),
    _Pattern(
        "ip",
        re.compile(
            rf"(?<![A-Za-z0-9_:.])(?:[0-9A-Fa-f]{{0,4}}:){{2,7}}(?:(?:{_BYTE}\.){{3}}{_BYTE}|[0-9A-Fa-f]{{0,4}})(?![A-Za-z0-9_:])"
        ),
        _is_ip6,
    ),
    _Pattern("identity", re.compile(r"(?<![0-9A-Za-z])\d{17}[\dXx](?![0-9A-Za-z])"), is_identity),
    _Pattern(
        "card",
        re.compile(
            r"(?<![\d.-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?|\d{4}([ -])\d{6}\2\d{5}"
            r"|\d{6}([ -])\d{13})(?![\d-])(?!\.\d)"
        ),
        is_card,
    ),
    _Pattern("mobile", re.compile(r"(?<!\d)(?:(?:\+|00)?86[ -]?)?1[3-9]\d([ -]?)\d{4}\1\d{4}(?!\d)")),
)
"""In the order in which they are looked for: what one has found is not looked at again."""

# One of these stands in every text that holds something private; most texts hold none and are done at once.
_SIGN = re.compile(
    r"@|\d{4}|\d\.\d|:[0-9A-Fa-f]*:|-----BEGIN|[A-Za-z0-9_]{16}|eyJ|xox|sk-|(?i:bearer)|[:=]\s*[\"']?[!-~]{8}"
)

MASKS: Mapping[PrivateKind, str] = {
    "secret": "<SECRET>",
    "email": "<EMAIL>",
    "ip": "<IP>",
    "identity": "<IDENTITY>",
    "card": "<CARD>",
    "mobile": "<MOBILE>",
}
"""What stands where something private stood."""
_MASKS = frozenset(MASKS.values())


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """A private datum: `text[start:end]`."""

    start: int
    end: int
    kind: PrivateKind


def find_private(text: str) -> list[Found]:
    """Find all private data in a text, in the order of their places; none overlaps another."""
    folded = text if text.isascii() else text.translate(_FOLD)
    if not _SIGN.search(folded):
        return []
    found: list[Found] = []
    for pattern in PATTERNS:
        for start, end in _places(pattern, folded):
            if all(end <= other.start or start >= other.end for other in found):
                found.append(Found(start, end, pattern.kind))
    return sorted(found)


def _places(pattern: _Pattern, text: str) -> Iterator[tuple[int, int]]:
    for match in pattern.form.finditer(text):
        span = match.span("private") if "private" in pattern.form.groupindex else match.span()
        given = text[slice(*span)]
        if given not in _MASKS and pattern.is_real(given):
            yield span


def masked(text: str, found: list[Found]) -> str:
    """Return a text without what was found in it."""
    if not found:
        return text
    kept, done = [], 0
    for one in found:
        kept += [text[done : one.start], MASKS[one.kind]]
        done = one.end
    return "".join([*kept, text[done:]])


class Masker:
    """Masks the texts of one row and remembers what kinds there were."""

    def __init__(self, kinds: frozenset[PrivateKind] = frozenset(MASKS)) -> None:
        """Mask these kinds; others stay."""
        self.kinds = kinds
        self.found: Counter[PrivateKind] = Counter()

    def __call__(self, text: str) -> str:
        """Mask a text."""
        # Without a first find, what stood beside it may be one that its neighbour had hidden.
        while found := [one for one in find_private(text) if one.kind in self.kinds]:
            self.found.update(one.kind for one in found)
            text = masked(text, found)
        return text
