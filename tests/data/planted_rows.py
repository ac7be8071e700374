"""Rows of which it is known what should become of them: clean ones, and planted duplicates, private data, short texts.

Clean rows are drawn from vocabularies, so that no two are near each other. Each row has an `id`, by which is told what
was planted.
"""

import random
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from stdnum import luhn
from stdnum.iso7064 import mod_11_2

from rlhf_ray.data.cleaning.signatures import jaccard, ngram_set
from rlhf_ray.data.cleaning.texts import normal

SHINGLE = 5
SHORTEST = 5
"""Characters below which a text was planted as too short."""
ENGLISH_WORDS = (
    "the a of to and in that is was for it with as on be at by this from have or one had not but what all were when "
    "we there can an your which their if do will each about how up out them then she many some so these would other "
    "into has more her two like him see time could no make than first been its who now people my made over did down "
    "only way find use may water long little very after words called just where most know camera battery hotel room "
    "staff price screen keyboard novel chapter author journey kitchen garden window morning evening teacher student "
    "lesson answer market winter summer mountain river doctor patient medicine letter picture music dinner "
    "breakfast ticket station "
)
ENGLISH = ENGLISH_WORDS.split()
HAN = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种"
    "事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公"
    "此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特"
    "代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数"
)
SPAM_WORDS = "click buy now free winner prize cash discount offer subscribe limited deal bonus casino cheap"
SPAM_ENGLISH = SPAM_WORDS.split()
SPAM_CHINESE = [
    "加微信",
    "免费领取",
    "点击链接",
    "代开发票",
    "日赚千元",
    "扫码关注",
    "限时优惠",
    "兼职刷单",
    "包过",
    "低价",
]


@dataclass
class Planted:
    """The rows, and what was planted in them, by id."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    exact: dict[str, str] = field(default_factory=dict)
    """Of which row this one says the same."""
    near: dict[str, str] = field(default_factory=dict)
    private: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Kind, and the datum as it stands in the text."""
    short: set[str] = field(default_factory=set)
    low: set[str] = field(default_factory=set)
    clean: set[str] = field(default_factory=set)
    """Rows that nothing was planted in, and that nothing planted copies."""

    def counts(self) -> Counter[str]:
        """How many of each."""
        return Counter(
            rows=len(self.rows), exact=len(self.exact), near=len(self.near), private=len(self.private),
            short=len(self.short), low=len(self.low), clean=len(self.clean),
        )  # fmt: skip


def plant(rows: int, seed: int = 0) -> Planted:
    """So many rows, of which about a fifth has something planted, in a random order."""
    source = random.Random(seed)
    planted = Planted()
    texts: list[str] = []
    share = rows // 25
    for number in range(rows - 5 * share):
        planted.clean.add(f"clean-{number}")
        texts.append(clean_text(source))
        planted.rows.append({"id": f"clean-{number}", "text": texts[-1]})
    originals = source.sample(range(len(texts)), 2 * share)
    for number, original in enumerate(originals):
        name = f"{'exact' if number < share else 'near'}-{number}"
        planted.clean.discard(f"clean-{original}")
        if number < share:
            planted.exact[name] = f"clean-{original}"
            planted.rows.append({"id": name, "text": disguised(texts[original], source)})
        else:
            planted.near[name] = f"clean-{original}"
            planted.rows.append({"id": name, "text": nearly(texts[original], source)})
    kinds = list(PRIVATE)
    for number in range(share):
        kind = kinds[number % len(kinds)]
        datum = PRIVATE[kind](source)
        text = clean_text(source)
        place = source.randrange(len(text) // 2)
        while place < len(text) and text[place].isascii() and text[place].isalnum():
            place += 1
        name = f"private-{number}"
        planted.private[name] = (kind, datum)
        planted.rows.append({"id": name, "text": f"{text[:place]} {datum} {text[place:]}"})
    for number in range(share):
        planted.short.add(f"short-{number}")
        planted.rows.append(
            {"id": f"short-{number}", "text": source.choice(HAN) if number % 2 else source.choice("abc")}
        )
    for number in range(share):
        planted.low.add(f"low-{number}")
        planted.rows.append({"id": f"low-{number}", "text": spam_text(source)})
    source.shuffle(planted.rows)
    _put_originals_first(planted)
    return planted


def _put_originals_first(planted: Planted) -> None:
    """Of duplicates the first stays; so that it is known which, copies go behind their originals."""
    place = {row["id"]: number for number, row in enumerate(planted.rows)}
    for copy, original in (planted.exact | planted.near).items():
        first, last = place[original], place[copy]
        if last < first:
            planted.rows[first], planted.rows[last] = planted.rows[last], planted.rows[first]
            place[original], place[copy] = last, first


def clean_text(source: random.Random) -> str:
    """Two to six sentences, in Chinese or English."""
    return _text(source, chinese=source.random() < 0.5)


def _text(source: random.Random, chinese: bool) -> str:
    sentences = [_sentence(source, chinese) for _ in range(source.randint(2, 6))]
    return ("" if chinese else " ").join(sentences)


def _sentence(source: random.Random, chinese: bool) -> str:
    if chinese:
        return "".join(source.choices(HAN, k=source.randint(8, 25))) + source.choice("。！？")
    return " ".join(source.choices(ENGLISH, k=source.randint(6, 18))).capitalize() + source.choice(".!?")


def spam_text(source: random.Random) -> str:
    """A clean text with a third of it replaced by what spam says."""
    if source.random() < 0.5:
        pieces = [source.choice(SPAM_CHINESE) if source.random() < 0.4 else _sentence(source, True) for _ in range(5)]
        return "，".join([*pieces, source.choice(SPAM_CHINESE)])
    words = _text(source, False).split()
    return " ".join(source.choice(SPAM_ENGLISH) if source.random() < 0.3 else word for word in words)


def disguised(text: str, source: random.Random) -> str:
    """The same text with other capitals, widths or white space."""
    changes: list[Callable[[str], str]] = [
        str,
        str.upper,
        lambda given: given.replace(" ", "  ") + "\n",
        lambda given: "".join(chr(ord(c) + 0xFEE0) if c in string.ascii_letters else c for c in given),
        lambda given: f" \u3000{given}",
    ]
    return source.choice(changes)(text)


def alike(one: str, other: str) -> float:
    return jaccard(ngram_set(normal(one), SHINGLE), ngram_set(normal(other), SHINGLE))


def nearly(text: str, source: random.Random) -> str:
    """The text with a character changed, or as much added at its end as leaves it similar by at least 0.9."""
    letters = string.ascii_lowercase if text.isascii() else HAN
    place = source.randrange(len(text))
    changed = text[:place] + source.choice(letters) + text[place + 1 :]
    if changed != text and alike(changed, text) >= 0.9:
        return changed
    changed = text
    while alike(longer := changed + source.choice(letters), text) >= 0.9:
        changed = longer
    return changed if changed != text else text[:-1]


def _digits(source: random.Random, count: int) -> str:
    return "".join(source.choices(string.digits, k=count))


def mobile(source: random.Random) -> str:
    """A Chinese mobile number in one of its usual forms."""
    number = f"1{source.choice('3456789')}{_digits(source, 9)}"
    forms = [number, f"+86 {number}", f"86-{number}", f"{number[:3]}-{number[3:7]}-{number[7:]}"]
    return source.choice([*forms, f"{number[:3]} {number[3:7]} {number[7:]}", _full_width(number)])


def identity(source: random.Random) -> str:
    """A Chinese identity number."""
    born = date(1940, 1, 1) + timedelta(days=source.randrange(25_000))
    start = f"{source.choice(['110101', '310104', '440305', '510107', '650102'])}{born:%Y%m%d}{_digits(source, 3)}"
    check = mod_11_2.calc_check_digit(start)
    return start + (check.lower() if source.random() < 0.5 else check)


def card(source: random.Random) -> str:
    """A bank card number that Luhn accepts, plain or in groups of four."""
    start = source.choice(["4", "51", "6222", "622848", "6217"])
    start += _digits(source, source.choice([15, 18]) - len(start))
    number = start + luhn.calc_check_digit(start)
    between = source.choice(["", " ", "-"])
    return between.join(number[place : place + 4] for place in range(0, len(number), 4))


def email(source: random.Random) -> str:
    """An e-mail address."""
    name = "".join(source.choices(string.ascii_lowercase + string.digits, k=8))
    host = source.choice(["qq.com", "163.com", "mail.example.org", "uni.edu.cn", "firma-example.de"])
    return source.choice([f"{name}@{host}", f"{name[:4]}.{name[4:]}+tag@{host}", f"{name}_x@{host}".upper()])


def ip(source: random.Random) -> str:
    """An IPv4 or IPv6 address."""
    if source.random() < 0.5:
        return ".".join(str(source.randrange(1, 255)) for _ in range(4))
    groups = [f"{source.randrange(1 << 16):x}" for _ in range(8)]
    return source.choice([":".join(groups), f"2001:db8:{groups[0]}::1", f"fe80::1:{groups[1]}"])


def secret(source: random.Random) -> str:
    """A key, token or password in one of the forms in which they leak."""
    letters = "".join(source.choices(string.ascii_letters + string.digits, k=40))
    upper = "".join(source.choices(string.ascii_uppercase + string.digits, k=16))
    forms = [f"sk-{letters}", f"ghp_{letters[:36]}", f"AKIA{upper}", f"hf_{letters[:34]}", f"AIza{letters[:35]}"]
    forms += [f"glpat-{letters[:20]}", f"eyJ{letters[:12]}.{letters[12:26]}.{letters[26:]}", f"LTAI{letters[:16]}"]
    return source.choice(forms)


def _full_width(text: str) -> str:
    return "".join(chr(ord(character) + 0xFEE0) for character in text)


PRIVATE: dict[str, Callable[[random.Random], str]] = {
    "mobile": mobile,
    "identity": identity,
    "card": card,
    "email": email,
    "ip": ip,
    "secret": secret,
}
