"""Texts that end a response are found in what the policy wrote, by vLLM's own look at its tokens."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlhf_ray.data.tokenization import Encoder
from rlhf_ray.models.tiny import build_tokenizer
from rlhf_ray.rollout.requests import GenerationRequest, sampling_params
from tests.tiny_sentencepiece import build_sentencepiece


@pytest.mark.parametrize(
    "tokenizer", [build_tokenizer(["hello how"], 300), build_sentencepiece()], ids=["bytes", "blank"]
)
@pytest.mark.parametrize(
    ("stop", "written"),
    [("</think>", "why</think>4"), (" how", "hello how are"), ("很好", "质量很好。"), ("\n\n", "a\n\nb")],
)
def test_a_stop_text_is_found(tokenizer: Any, stop: str, written: str) -> None:
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    encoder = Encoder(tokenizer)
    prompt, answer = encoder.prompt("4 ="), encoder.answer("4 =", written)
    request = GenerationRequest("a", prompt, n=1, seed=0, max_tokens=99, temperature=1.0, stop=(stop,))
    asked: Any = SimpleNamespace(
        sampling_params=sampling_params(request), prompt_token_ids=prompt.tolist(), request_id="a"
    )
    reader = FastIncrementalDetokenizer(tokenizer, asked)
    read = next(place for place, token in enumerate(answer.tolist(), 1) if reader.update([token], False) == stop)
    text = encoder.response("4 =", prompt, np.array(answer[:read]), ended=True)
    assert text.endswith(stop) or encoder.template.special.get(int(answer[read - 1])) == stop
