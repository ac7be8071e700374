"""Whether a tokenizer, as it was loaded, keeps texts as its tokenizer.json does.

Transformers 5 rebuilds some tokenizers from the class that tokenizer_config.json names, and takes only words and merges
from tokenizer.json. Byte-level vocabularies that are called LlamaTokenizerFast, as several of DeepSeek are, then lose
all blanks (issues 45488 and 48206 of transformers).
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_ray.config.errors import BadInput

SAMPLES = (
    "hello how are you",
    "two  blanks,\n\nlines\tand 2026 = 1,234.5\n",
    "def f(x):\n    return x != 'a'",
    "刚收到货，质量很好。",
    "ok 🎉🎉 done",
)
"""Texts to keep: blanks, lines, digits, Chinese and emoji. None begins with blanks, of which some classes drop one, or
has a second spelling in Unicode, for some compose characters."""

BYTE_LEVEL_BLANK = "Ġ"
"""How byte-level vocabularies write a blank."""


def as_in_its_file(tokenizer: Any, path: str, beside: str, trust_remote_code: bool) -> Any:
    """Return a tokenizer that keeps texts as the tokenizer.json it comes from: the given one, or one made from that.

    Ids may differ from the file's where texts do not: some classes split numbers in another way on purpose, and engines
    and plain Transformers go by the class. What is saved beside the model must load as it is here.

    Args:
        tokenizer: as Transformers loaded it.
        path: a directory or the hub's name.
        beside: likewise of the model whose config.json will lie beside it.
        trust_remote_code: whether code beside the tokenizer may be run.

    Raises:
        BadInput: tokenizer.json loses blanks itself, or no saved tokenizer would load as it says.
    """
    from transformers import PreTrainedTokenizerFast

    file = cached(path, "tokenizer.json")
    if file is None or not tokenizer.is_fast:
        return tokenizer
    own = _read(file)
    kept = tokenizer
    lost = lost_text(tokenizer, own)
    if lost is not None:
        kept = PreTrainedTokenizerFast.from_pretrained(path, trust_remote_code=trust_remote_code)
    if lost is not None or path != beside:
        lost = lost_text(kept, own) or _lost_beside(kept, beside, own)
    if lost is not None:
        whose = "the model's own tokenizer" if path != beside else "a model of another kind, or another Transformers"
        raise BadInput(f"{path}: {lost}, whatever class its tokenizer_config.json names; use {whose}")
    return kept


def lost_text(tokenizer: Any, own: Any) -> str | None:
    """Return what becomes of a sample that a tokenizer does not keep; None if it keeps all as its file does.

    Args:
        tokenizer: of Transformers.
        own: the file's, of `tokenizers`.
    """
    for sample in SAMPLES:
        ids = own.encode(sample, add_special_tokens=False).ids
        kept = own.decode(ids, skip_special_tokens=False)
        # Policies write ids of the vocabulary, so those of the file must be read too, and not the class's own alone.
        for text in (
            _tried(lambda: _decoded(tokenizer, tokenizer(sample, add_special_tokens=False)["input_ids"])),  # noqa: B023
            _tried(lambda: _decoded(tokenizer, ids)),  # noqa: B023
        ):
            if text not in (sample, kept):
                return f"loaded as {type(tokenizer).__name__}, its tokenizer makes {text!r} of {kept!r}"
    return None


def save_beside(tokenizer: Any, model: str, folder: str) -> None:
    """Save a tokenizer, with the config.json of the model (directory or hub name) that decides how it is loaded."""
    tokenizer.save_pretrained(folder)
    config = cached(model, "config.json")
    if config is not None:
        shutil.copy(config, Path(folder) / "config.json")


def cached(path: str, name: str) -> str | None:
    """Return where a file of a directory, or of a model of the hub, lies; None where there is none."""
    from transformers.utils import cached_file

    found = cached_file(
        path,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return str(found) if found else None


def _read(file: str) -> Any:
    """Read the tokenizer of a file, after a look at whether it keeps blanks itself."""
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(file)
    own.no_truncation()
    own.no_padding()
    text = own.decode(own.encode(SAMPLES[0], add_special_tokens=False).ids, skip_special_tokens=False)
    if own.token_to_id(BYTE_LEVEL_BLANK) is not None and " " not in text:
        raise BadInput(
            f"{file}: makes {text!r} of {SAMPLES[0]!r}: "
            "it was saved by a Transformers that had loaded it as another kind; take that of the model it comes from"
        )
    return own


def _lost_beside(tokenizer: Any, model: str, own: Any) -> str | None:
    """Say what is lost where a tokenizer is saved beside a config.json, which decides how it loads too."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        save_beside(tokenizer, model, folder)
        try:
            # Not left open: Transformers would ask at the terminal.
            saved = AutoTokenizer.from_pretrained(folder, mistral_format=False, trust_remote_code=False)
        except (OSError, ValueError, KeyError):
            # A config that needs code from beside it, which is not here: nothing is known against the tokenizer.
            return None
        return lost_text(saved, own)


def _decoded(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _tried(decode: Callable[[], str]) -> str:
    try:
        return decode()
    except Exception as error:  # tokenizers raises plain ones, as for an unknown token that the vocabulary lacks
        return f"nothing ({str(error).splitlines()[0]})"
