import json
import shutil

import pytest
import torch
import transformers

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.models import loading
from rlhf_ray.models.loading import load_policy, load_scalar, load_tokenizer
from rlhf_ray.models.score_statistics import ScoreStatistics


def config(path, **settings):
    return ModelConfig(path=str(path), dtype="float32", **settings)


@pytest.fixture
def model_copy(tiny_model, tmp_path):
    return shutil.copytree(tiny_model.tied, tmp_path / "model")


def edit(path, **values):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | values))


def test_missing_and_wrong_directories(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name, message in [("nowhere", "no such model directory"), ("empty", "no config.json"), ("file", "is a file")]:
        for load in (load_policy, lambda c: load_scalar(c, 0), load_tokenizer):
            with pytest.raises(BadInput, match=message) as error:
                load(config(tmp_path / name))
            assert str(tmp_path / name) in str(error.value)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(("auto", "load"), [("AutoTokenizer", load_tokenizer), ("AutoConfig", load_policy)])
def test_a_hub_name_that_is_none(monkeypatch, auto, load):
    def refuse(path, **_):
        raise OSError(f"{path} is not a valid model identifier\nand more")

    monkeypatch.setattr(f"transformers.{auto}.from_pretrained", refuse)
    words = "^owner/none: no such directory, and not loaded from the hub: owner/none is not a valid model identifier$"
    with pytest.raises(BadInput, match=words):
        load(config("owner/none"))


def test_directory_without_weights(model_copy):
    (model_copy / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="safetensors"):
        load_policy(config(model_copy))


def test_pickled_weights_are_not_read(model_copy):
    weights = model_copy / "model.safetensors"
    torch.save({}, model_copy / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(BadInput):
        load_policy(config(model_copy))


def test_unsupported_architectures(model_copy):
    edit(model_copy / "config.json", model_type="nonesuch")
    with pytest.raises(BadInput, match="nonesuch"):
        load_policy(config(model_copy))


def test_classifier_of_several_labels_is_no_reward_model(model_copy):
    labels = {str(i): f"L{i}" for i in range(3)}
    edit(model_copy / "config.json", architectures=["Qwen2ForSequenceClassification"], id2label=labels)
    with pytest.raises(BadInput, match="has 3"):
        load_scalar(config(model_copy), 0)


def test_head_is_drawn_by_the_seed_and_kept_by_a_reward_model(tiny_model, tmp_path):
    heads = [load_scalar(config(tiny_model.tied), seed).score.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    load_scalar(config(tiny_model.tied), 1).save_pretrained(tmp_path)
    assert torch.equal(load_scalar(config(tmp_path), 7).score.weight, heads[0])


def test_a_critic_from_a_reward_model_speaks_in_the_units_of_its_scores(tiny_model, tmp_path):
    load_scalar(config(tiny_model.tied), seed=3).save_pretrained(tmp_path)
    units = ScoreStatistics(texts=9, mean=1.0, std=2.5, median=0.0)
    raw = load_scalar(config(tmp_path), seed=0, per_token=True).score.weight
    scaled = load_scalar(config(tmp_path), seed=0, per_token=True, units=units).score.weight
    torch.testing.assert_close(scaled, raw / 2.5)
    fresh = [load_scalar(config(tiny_model.tied), 0, True, units=given).score.weight for given in (None, units)]
    torch.testing.assert_close(*fresh, rtol=0, atol=0)


def test_dtype_and_attention(model_copy):
    network = load_policy(ModelConfig(path=str(model_copy), dtype="bfloat16", attention="eager"))
    assert network.dtype == torch.bfloat16
    assert network.config._attn_implementation == "eager"


def test_tokenizer_without_eos_is_refused(model_copy):
    edit(model_copy / "tokenizer_config.json", eos_token=None)
    with pytest.raises(BadInput, match="no EOS token"):
        load_tokenizer(config(model_copy))


def test_missing_padding_token_falls_back(model_copy):
    edit(model_copy / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(config(model_copy))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_chat_template_from_text_and_file(tiny_model, tmp_path):
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    (tmp_path / "chat.jinja").write_text(template)
    for given in (template, str(tmp_path / "chat.jinja")):
        tokenizer = load_tokenizer(config(tiny_model.tied, chat_template=given))
        chat = [{"role": "user", "content": "hi"}]
        assert tokenizer.apply_chat_template(chat, tokenize=False) == "[hi]"
    with pytest.raises(BadInput, match="neither a file nor"):
        load_tokenizer(config(tiny_model.tied, chat_template="missing.jinja"))


@pytest.mark.parametrize(
    ("architecture", "settings", "expected"),
    [
        ("Qwen3Moe", {"num_experts": 2, "moe_intermediate_size": 16}, ["mlp.experts.down_proj"]),
        ("Mixtral", {"num_local_experts": 2}, ["mlp.experts.down_proj", "mlp.gate.weight"]),
        # Experts that are one tensor in the checkpoint too.
        ("GptOss", {"num_local_experts": 2}, []),
        ("Qwen2", {"tie_word_embeddings": True}, []),
    ],
)
@pytest.mark.parametrize("at_hand", [True, False])
def test_weights_that_train_under_other_names_than_their_checkpoints(
    architecture, settings, expected, at_hand, tmp_path, monkeypatch
):
    common = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}
    described = getattr(transformers, f"{architecture}Config")(**common, **heads, pad_token_id=0, **settings)
    getattr(transformers, f"{architecture}ForCausalLM")(described).save_pretrained(tmp_path)
    if not at_hand:
        monkeypatch.setattr(loading, "checkpoint_shapes", lambda path: None)
    renamed = loading.renamed_weights(config(tmp_path), loading.outline(config(tmp_path)))
    assert [name.removeprefix("model.layers.0.") for name in renamed if "gate_up" not in name] == expected
