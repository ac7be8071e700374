"""Both sides of a benchmark write responses of the same lengths."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.policy_steps import ScheduledLengths, next_kind
from benchmarks.ppo_workload import Responses, Workload, natural_lengths
from benchmarks.trl_turns import ScheduledEnd
from rlhf_ray.data.records import PromptRecord
from rlhf_ray.models.tiny import build_tokenizer
from rlhf_ray.rollout.interfaces import RolloutTask
from rlhf_ray.rollout.requests import Completion, GenerationRequest, GenerationResult

PROMPTS = [[3, 4], [5, 6]]
LENGTHS = {"natural": [2, 5, 3, 1], "fixed": [4] * 4}
EOS, PAD, WORD, VOCABULARY = 1, 0, 7, 8


def test_responses_of_transformers_end_where_the_schedule_says() -> None:
    schedule = ScheduledEnd(PROMPTS, EOS, PAD)
    for kind, lengths in LENGTHS.items():
        schedule.schedule(lengths)
        ids = torch.tensor([PROMPTS[1], PROMPTS[0], PROMPTS[1], PROMPTS[0]])
        for _ in range(5):
            scores = torch.zeros(4, VOCABULARY)
            scores[:, WORD], scores[:, EOS] = 1.0, 2.0
            ids = torch.cat([ids, schedule(ids, scores).argmax(1, keepdim=True)], dim=1)
        found = [row.index(EOS) - 1 for row in ids.tolist()]
        assert found == [lengths[2], lengths[0], lengths[3], lengths[1]], kind
        assert schedule.written == sum(lengths)


def test_responses_of_the_engine_have_the_same_lengths() -> None:
    tokenizer = build_tokenizer(["a text"], 300)
    workload: Any = SimpleNamespace(lengths=LENGTHS, longest=5)
    rollout = ScheduledLengths(tokenizer, workload)
    asked: list[GenerationRequest] = []

    async def generate(request: GenerationRequest) -> GenerationResult:
        asked.append(request)
        ids, logprobs = np.zeros(request.max_tokens, np.int32), np.zeros(request.max_tokens, np.float32)
        return GenerationResult(request.request_id, [Completion(0, ids, logprobs, "length", [])])

    record = PromptRecord("1", "text", np.array(PROMPTS[1], np.int32), {})
    samples = asyncio.run(rollout(generate, RolloutTask(record, 2, "7/1", "0/7/1/0", seed=11)))
    assert [len(sample.response_ids) for sample in samples] == LENGTHS["natural"][2:]
    assert [sample.index for sample in samples] == [0, 1]
    assert len({request.request_id for request in asked}) == len({request.seed for request in asked}) == 2
    assert all(request.ignore_eos for request in asked)


def test_kept_models_are_of_the_same_responses(tmp_path: Path) -> None:
    """The two benchmarks may be told the same folder."""
    kept = Responses(prompts=2, mean=96, longest=512, group=3)
    lengths = {"natural": natural_lengths(kept), "fixed": [64] * 6}
    (tmp_path / "lengths.json").write_text(json.dumps(lengths))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert Workload.make(tmp_path, kept).lengths == lengths
    for other in (replace(kept, prompts=3, group=2), replace(kept, mean=80), replace(kept, group=2)):
        with pytest.raises(SystemExit, match="of other responses; name another folder"):
            Workload.make(tmp_path, other)


def test_steps_of_one_kind_follow_each_other() -> None:
    done = {"natural": 0, "fixed": 0}
    kinds = []
    for _ in range(6):
        kinds.append(next_kind(done, steps=6))
        done[kinds[-1]] += 1
    assert kinds == ["natural"] * 3 + ["fixed"] * 3
    assert next_kind(done, steps=6) == "fixed", "asked once more after the last step"


def test_natural_lengths_have_their_mean_and_cap() -> None:
    lengths = natural_lengths(Responses(prompts=125, mean=96, longest=512, group=8))
    assert len(lengths) == 1000
    assert max(lengths) == 512
    assert 92 < np.mean(lengths) < 97
