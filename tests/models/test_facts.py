"""What is known of a model is read once, and again when its files have changed."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.models import facts
from rlhf_ray.models.facts import facts_of, weight_bytes
from rlhf_ray.models.loading import load_tokenizer, outline, policy_config, read_model_config, scalar_config
from tests.conftest import TinyModel


@pytest.fixture
def model(tiny_model: TinyModel, tmp_path: Path) -> ModelConfig:
    return ModelConfig(path=str(shutil.copytree(tiny_model.tied, tmp_path / "model")))


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Directories that Transformers was asked for, with the class that was asked."""
    found: Counter[str] = Counter()
    for auto in (AutoConfig, AutoTokenizer):

        def read(path: str, *given: Any, auto: Any = auto, own: Any = auto.from_pretrained, **named: Any) -> Any:
            if "_from_auto" not in named:  # a tokenizer looks at the configuration itself
                found[auto.__name__] += 1
            return own(path, *given, **named)

        monkeypatch.setattr(auto, "from_pretrained", read)
    return found


def test_all_checks_read_a_model_once(model: ModelConfig, readings: Counter[str]) -> None:
    first = load_tokenizer(model)
    before = readings["AutoConfig"]
    for _ in range(2):
        policy_config(model)
        scalar_config(model)
        assert outline(model) is outline(model)
        assert outline(model, scalar=True) is not outline(model)
        assert load_tokenizer(model) is first
    assert readings == {"AutoTokenizer": 1, "AutoConfig": before + 1}


def test_a_configuration_is_the_callers_own(model: ModelConfig) -> None:
    changed = read_model_config(model.path, trust_remote_code=False)
    changed.num_labels = 7
    assert read_model_config(model.path, trust_remote_code=False).num_labels != 7


def test_each_chat_template_has_a_tokenizer(model: ModelConfig) -> None:
    given = model.model_copy(update={"chat_template": "{{ messages[0].content }}"})
    own = load_tokenizer(model).chat_template
    assert load_tokenizer(given).chat_template == given.chat_template != own
    assert load_tokenizer(model).chat_template == own


def test_a_model_that_was_written_anew_is_read_anew(model: ModelConfig) -> None:
    assert facts_of(model.path).config.max_position_embeddings == 2048
    assert facts_of(model.path) is facts_of(model.path)
    file = Path(model.path) / "config.json"
    file.write_text(file.read_text().replace('"max_position_embeddings": 2048', '"max_position_embeddings": 99'))
    assert facts_of(model.path).config.max_position_embeddings == 99


def test_the_size_of_weights_is_known_before_they_are_at_hand(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub name has its config alone, and weights of 16 bits; the test's own have 32."""
    shutil.copy(tiny_model.tied / "config.json", tmp_path)
    known = facts_of(str(tmp_path))
    monkeypatch.setattr(facts, "facts_of", lambda *_: known)
    in_files = weight_bytes(str(tiny_model.tied))
    assert weight_bytes("owner/model") == pytest.approx(in_files / 2, rel=0.05)
    assert weight_bytes(str(tmp_path)) == 0, "yet to be written"
