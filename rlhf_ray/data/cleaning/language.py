"""The language of texts, by their scripts, and among languages in Latin letters by their commonest words."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from rlhf_ray.data.cleaning.characters import Characters

LETTERS_A_WORD = 5
"""A Chinese character says about as much as so many letters of an alphabet."""
KANA_OF_JAPANESE = 0.05
"""Share of kana among Chinese characters and kana from which on a text is Japanese."""
_LATIN_WORD = re.compile(r"[^\W\d_]+")
_WORDS = {
    "en": "the of and to a in is it that for you was with on as have but be they not this are i my we at or from an "
    "by he she his her him had has were been will would can could there their what which who when how all one "
    "if so up out about into then them some do did no me your more its over down only very just like than "
    "these other first now",
    "de": "der die das und ist nicht ich zu den mit ein eine es auf für von dem sie wir auch im sich wie bei",
    "fr": "le la les et est pas je un une des que qui dans pour du ce il nous vous sur avec plus au ne en",
    "es": "el la los y es no que un una de en por con para se lo las del al como más su pero me muy",
    "it": "il la di e che non un una per con sono è del della mi ha gli le più come ma si anche nel",
    "pt": "o a os e é não que um uma de em por com para se do da no na mais como mas eu ele foi",
}
_LANGUAGES_OF = {
    word: [language for language, words in _WORDS.items() if word in words.split()]
    for words in _WORDS.values()
    for word in words.split()
}


def languages_of(texts: Sequence[str], characters: Characters) -> list[tuple[str, float]]:
    """Return the language of each text, and its share among the letters of the text.

    One of zh, ja, ko, ar, th, hi, those of `_WORDS`, `ru` for any language in Cyrillic letters, `other`, and `none` for
    a text without letters.
    """
    weights = np.stack(
        [
            characters.count("han", "kana"),
            characters.count("hangul"),
            characters.count("cyrillic") / LETTERS_A_WORD,
            characters.count("arabic") / LETTERS_A_WORD,
            characters.count("thai") / LETTERS_A_WORD,
            characters.count("devanagari") / LETTERS_A_WORD,
            characters.count("latin") / LETTERS_A_WORD,
            characters.count("letter") / LETTERS_A_WORD,
        ],
        axis=1,
    )
    totals = weights.sum(axis=1)
    best = weights.argmax(axis=1)
    shares = weights.max(axis=1, initial=0) / np.maximum(totals, 1e-9)
    east_asian = characters.count("han", "kana")
    japanese = characters.count("kana") > KANA_OF_JAPANESE * east_asian
    found = []
    for place, text in enumerate(texts):
        if totals[place] == 0:
            found.append(("none", 1.0))
            continue
        script = int(best[place])
        named = ("ja" if japanese[place] else "zh", "ko", "ru", "ar", "th", "hi", "", "other")[script]
        found.append((named or _latin_language(text), float(shares[place])))
    return found


def _latin_language(text: str) -> str:
    """Tell in which language a text has most common words; English if hardly any and only plain letters."""
    counts: Counter[str] = Counter()
    for word in _LATIN_WORD.findall(text.casefold()):
        counts.update(_LANGUAGES_OF.get(word, ()))
    most = max(counts.values(), default=0)
    # One word in plain letters may stand in any language, such as a name.
    if text.isascii() and most < 2:
        return "en"
    return next(language for language in _WORDS if counts[language] == most) if most else "other"
