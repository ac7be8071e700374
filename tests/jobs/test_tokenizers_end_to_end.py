"""sft, reward, dpo and ppo on a SentencePiece model and on a ChatML one whose EOS is not what ends a turn."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_ray.config.jobs.dpo import DPOConfig
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.jobs.supervised import RewardTrainingConfig, SFTConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.data.loading import read_supervised
from rlhf_ray.data.records import Sample
from rlhf_ray.jobs.ppo import run as ppo
from rlhf_ray.jobs.supervised import dpo, reward, sft
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.tiny import build_tokenizer
from rlhf_ray.models.tokenizer_texts import SAMPLES
from rlhf_ray.tracking.records import SHOWN
from tests.jobs.actors_here import policy_alone
from tests.jobs.ppo_runs import metrics_of, recorded_steps, training_rows, write_rows
from tests.tiny_sentencepiece import LLAMA_2, TEXTS, build_llama, build_sentencepiece

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTIONS = ["how are you", "was it good", "hello", "这部电影", "what is it", "4 + 10"]
GOOD, BAD = ("yes", "质量很好。", "it was wonderful"), ("no", "不好。", "it was bad")
REWARD = """
import json
def length(prompts, completions, **columns):
    texts = [turns[-1]["content"] for turns in completions]
    with open({file!r}, "a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(text) + "\\n" for text in texts)
    return [float(len(text)) for text in texts]
"""


@dataclass(frozen=True)
class Family:
    """A model and what is known about its turns."""

    model: Path
    end: str
    stop: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> Any:
        return load_tokenizer(ModelConfig(path=str(self.model)))

    @property
    def end_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(self.end))


def sentencepiece(folder: Path) -> Family:
    tokenizer = build_sentencepiece("normalizer")
    tokenizer.chat_template = LLAMA_2
    return Family(as_llama(build_llama(folder, tokenizer)), "</s>")


def chatml(folder: Path) -> Family:
    """A byte-level vocabulary that is called LlamaTokenizerFast, from which plain Transformers takes all blanks."""
    tokenizer = build_tokenizer(TEXTS, 330)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "unk_token": "<unk>"})
    tokenizer.chat_template = CHATML
    return Family(as_llama(build_llama(folder, tokenizer)), "<|im_end|>", stop=(" ",))


def as_llama(folder: Path) -> Path:
    """Name the class of a saved tokenizer as published Llamas do."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}))
    return folder


@pytest.fixture(scope="module", params=[sentencepiece, chatml], ids=lambda made: made.__name__)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return request.param(tmp_path_factory.mktemp("family") / "base")


@pytest.fixture(scope="module")
def runs(family: Family, ppo_settings: Callable[..., dict[str, Any]]) -> Path:
    """The folder of the four runs, each from what the one before it made."""
    folder = family.model.parent
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    pairs = [
        {"prompt": prompt, "chosen": GOOD[place % 3], "rejected": BAD[place % 3]} for place, prompt in enumerate(asked)
    ]
    talks = [
        {"messages": [*row["prompt"], {"role": "assistant", "content": row["chosen"]}, *asked[1], answer("no")]}
        for row in pairs
    ]
    write_rows(folder / "talks.jsonl", talks)
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in asked])
    (folder / "reward.py").write_text(REWARD.format(file=str(folder / "read.jsonl")))
    source = {"kind": "function", "name": "length", "function": f"{folder}/reward.py:length", "cpus_per_worker": 0.1}
    model = {"kind": "model", "name": "taste", "path": f"{folder}/reward/final", "cpus_per_worker": 0.1}
    settings = ppo_settings(
        folder / "ppo",
        model={"path": f"{folder}/dpo/final"},
        data={"path": f"{folder}/prompts.jsonl", "max_prompt_tokens": 64},
        steps=1,
        prompts_per_step=6,
        rewards=[source, model | {"dtype": "float32"}],
        evaluation={"data": None},
        checkpoint={"every_steps": 0},
        rollout={"record": f"{folder}/samples.recorded", "stop": list(family.stop)},
    )
    with policy_alone():
        sft.run(SFTConfig.model_validate(supervised(folder, "sft", "base", "talks") | {"epochs": 4}))
        reward.run(RewardTrainingConfig.model_validate(supervised(folder, "reward", "sft/final", "pairs")))
        dpo.run(DPOConfig.model_validate(supervised(folder, "dpo", "sft/final", "pairs") | {"reference_cache": None}))
        ppo.run(PPOConfig.model_validate(settings))
    return folder


def answer(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def supervised(folder: Path, name: str, model: str, rows: str) -> dict[str, Any]:
    """Settings of a job that learns from rows in one step an epoch."""
    return {
        "output": str(folder / name),
        "model": {"path": str(folder / model), "dtype": "float32"},
        "data": {"path": str(folder / f"{rows}.jsonl")},
        "epochs": 1,
        "batch_size": 6,
        "trainer": {"learning_rate": 1e-2, "cpus_per_worker": 0.3},
        "checkpoint": {"every_steps": 0},
        "tracking": {"wandb": "off", "tensorboard": False},
    }


def samples(runs: Path) -> list[Sample]:
    [step] = recorded_steps(runs / "samples.recorded")
    return step


def test_what_is_learned_ends_as_the_template_has_it(family: Family, runs: Path) -> None:
    data = SFTConfig.model_validate(supervised(runs, "sft", "base", "talks")).data
    tokenizer = family.tokenizer
    for row in read_supervised(data, tokenizer).rows:
        ids = [*row.prompt_ids.tolist(), *row.response_ids.tolist()]
        assert ids[-1] == family.end_id
        assert row.written[-1]
        assert ids.count(family.end_id) == (4 if tokenizer.eos_token != family.end else 2)
        if tokenizer.eos_token != family.end:
            assert tokenizer.eos_token_id not in ids


def logged_rows(runs: Path) -> list[dict[str, Any]]:
    """Rows of the run's samples.jsonl."""
    lines = (runs / "ppo" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_texts_are_what_responses_add_to_their_prompts(family: Family, runs: Path) -> None:
    tokenizer = family.tokenizer
    ends = {tokenizer.eos_token_id, family.end_id}
    for sample in samples(runs):
        prompt, ids = sample.prompt_ids.tolist(), sample.response_ids.tolist()
        kept = [token for token in ids if token not in ends | {tokenizer.pad_token_id}]
        before, both = tokenizer.decode(prompt), tokenizer.decode([*prompt, *kept])
        assert both.startswith(before)
        added = both[len(before) :]
        if family.end == tokenizer.eos_token:
            # Llama-2's template has a blank on each side of an answer.
            ended = sample.finish_reason == "stop"
            added = added.removeprefix(" ").removesuffix(" " if ended else "")
        assert sample.response == added
    logged = [row["response"] for row in logged_rows(runs) if row["kind"] != SHOWN]
    assert logged
    assert set(logged) <= {sample.response for sample in samples(runs)}


def test_rewards_read_those_texts(runs: Path) -> None:
    read = [json.loads(line) for line in (runs / "read.jsonl").read_text(encoding="utf-8").splitlines()]
    # Those that only people see, before and after training, are scored too.
    shown = [row["response"] for row in logged_rows(runs) if row["kind"] == SHOWN]
    assert sorted(read) == sorted([*shown, *(sample.response for sample in samples(runs))])
    for row in logged_rows(runs):
        assert row["rewards"]["length"] == len(row["response"])
        assert np.isfinite(row["rewards"]["taste"])


def test_responses_end_where_a_turn_does(family: Family, runs: Path) -> None:
    tokenizer = family.tokenizer
    ends = {tokenizer.eos_token_id, family.end_id}
    lasts = []
    for sample in samples(runs):
        ids = sample.response_ids.tolist()
        assert not ends & set(ids[:-1])
        if sample.finish_reason == "stop":
            lasts.append(ids[-1])
            assert ids[-1] in ends or any(stop in tokenizer.decode(ids[-1:]) for stop in family.stop)
        for stop in family.stop:
            assert stop not in tokenizer.decode(ids[:-1]), "the engine decodes as everything else does"
    assert family.end_id in lasts
    assert not family.stop or set(lasts) - ends


def test_engines_have_the_policys_weights(runs: Path) -> None:
    [row] = training_rows(runs / "ppo")
    assert 0 <= row["sync/logprob_diff"] <= 1e-4
    assert row["sync/version"] == 1
    assert row["sampling/sampling_logp_difference/max"] <= 1e-4
    assert metrics_of(runs / "dpo")[0]["loss"] == pytest.approx(np.log(2), abs=1e-3)


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo"])
def test_what_is_exported_loads_right_and_stops(family: Family, runs: Path, name: str) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(runs / name / "final")
    for text in SAMPLES:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer.chat_template == family.tokenizer.chat_template
    if name != "reward":
        ends = np.atleast_1d(GenerationConfig.from_pretrained(runs / name / "final").eos_token_id)
        assert {tokenizer.eos_token_id, family.end_id} <= set(ends.tolist())
