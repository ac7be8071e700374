"""Tokenizers that Transformers loads otherwise than their tokenizer.json says: mended, or refused with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.models.loading import engine_tokenizer, load_tokenizer
from rlhf_ray.models.tiny import build_tokenizer
from rlhf_ray.models.tokenizer_texts import SAMPLES
from tests.tiny_sentencepiece import build_sentencepiece

TEMPLATE = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"


def saved(folder: Path, tokenizer: Any, name: str | None, kind: str = "llama") -> ModelConfig:
    """Save a tokenizer beside a model's config of a kind, under the name of a class."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"tokenizer_class": name}
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return ModelConfig(path=str(folder), dtype="float32")


def byte_level() -> Any:
    tokenizer = build_tokenizer([SAMPLES[0], SAMPLES[3]], 300)
    tokenizer.add_special_tokens({"unk_token": "<unk>", "bos_token": "<s>"})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def read(tokenizer: Any, text: str) -> str:
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]))


def spoilt(path: str) -> bool:
    """Whether plain Transformers changes a text, or cannot read it."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    try:
        return read(tokenizer, SAMPLES[0]) != SAMPLES[0]
    except Exception:
        return True


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "LlamaTokenizer", "GemmaTokenizer"])
def test_a_byte_level_vocabulary_that_is_called_something_else_keeps_its_texts(tmp_path: Path, name: str):
    model = saved(tmp_path / "model", byte_level(), name)
    assert spoilt(model.path)
    tokenizer = load_tokenizer(model)
    assert [read(tokenizer, text) for text in SAMPLES] == list(SAMPLES)
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.chat_template) == ("<|end|>", "<s>", TEMPLATE)
    assert tokenizer.get_vocab() == byte_level().get_vocab()


def test_what_is_exported_and_what_an_engine_loads_keeps_them_too(tmp_path: Path):
    model = saved(tmp_path / "model", byte_level(), "LlamaTokenizerFast")
    load_tokenizer(model).save_pretrained(tmp_path / "final")
    (tmp_path / "final" / "config.json").write_text('{"model_type": "llama"}')
    with engine_tokenizer(model) as folder:
        assert folder is not None
        for path in (folder, tmp_path / "final"):
            assert [read(AutoTokenizer.from_pretrained(path), text) for text in SAMPLES] == list(SAMPLES)
    assert not Path(folder).exists()


@pytest.mark.parametrize(
    ("tokenizer", "name", "kind"),
    [
        (build_sentencepiece("normalizer"), "LlamaTokenizerFast", "llama"),
        (build_sentencepiece("normalizer"), "LlamaTokenizer", "mistral"),
        (build_sentencepiece("first"), "LlamaTokenizerFast", "llama"),
        (build_sentencepiece("always"), "LlamaTokenizer", "phi3"),
        (build_sentencepiece("never"), "GemmaTokenizerFast", "gemma2"),
        (build_sentencepiece("first", "unigram"), "PreTrainedTokenizerFast", "llama"),
        (byte_level(), "PreTrainedTokenizerFast", "llama"),
        (byte_level(), "Qwen2Tokenizer", "qwen2"),
        (byte_level(), "GPT2TokenizerFast", "gpt2"),
        (byte_level(), "GPTNeoXTokenizerFast", "gpt_neox"),
        (byte_level(), "LlamaTokenizerFast", "deepseek_v3"),
    ],
)
def test_what_loads_well_stays_as_it_is(tmp_path: Path, tokenizer: Any, name: str, kind: str):
    model = saved(tmp_path, tokenizer, name, kind)
    given = load_tokenizer(model)
    assert type(given) is type(AutoTokenizer.from_pretrained(tmp_path))
    assert [read(given, text) for text in SAMPLES] == list(SAMPLES)
    with engine_tokenizer(model) as folder:
        assert folder is None


def test_a_tokenizer_that_no_saved_config_would_load_right_is_refused(tmp_path: Path):
    model = saved(tmp_path, build_sentencepiece(), "LlamaTokenizerFast", "qwen2")
    with pytest.raises(BadInput, match=r"loaded as Qwen2Tokenizer, its tokenizer makes .* of 'hello how are") as error:
        load_tokenizer(model)
    assert "\n" not in str(error.value)


def test_another_directorys_tokenizer_must_load_beside_the_model(tmp_path: Path):
    saved(tmp_path / "words", build_sentencepiece(), "LlamaTokenizerFast")
    model = saved(tmp_path / "model", byte_level(), "Qwen2Tokenizer", "qwen2")
    with pytest.raises(BadInput, match="use the model's own tokenizer"):
        load_tokenizer(model.model_copy(update={"tokenizer": str(tmp_path / "words")}))


def test_a_file_that_was_saved_after_it_had_been_loaded_wrong_is_refused(tmp_path: Path):
    saved(tmp_path / "model", byte_level(), "LlamaTokenizerFast")
    AutoTokenizer.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "model")
    with pytest.raises(BadInput, match=r"tokenizer.json: makes 'hello.*you' of 'hello how are you'"):
        load_tokenizer(ModelConfig(path=str(tmp_path / "model")))
