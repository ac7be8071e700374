"""Answers of a model directory, written by Transformers in this process: for one person at a laptop, without Ray."""

import threading
from typing import Any

import numpy as np
import torch

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.jobs.labelling import ModelAnswers
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.records import Prompt
from rlhf_ray.data.tokenization import Encoder, Ids
from rlhf_ray.models.identity import SHORT_HASH, model_identity
from rlhf_ray.models.loading import load_policy, load_tokenizer


class ModelWriter:
    """A model in memory, on the GPU where there is one."""

    def __init__(self, source: ModelAnswers, seed: int) -> None:
        """Load the model.

        Raises:
            BadInput: it is not a language model that can be loaded.
        """
        self._encoder = Encoder(load_tokenizer(source.model))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network: Any = load_policy(source.model).to(device).eval()
        self._ends = self._encoder.all_ends(self._network)
        self._source = source
        self._version = version_of(source)
        self._lock = threading.Lock()
        torch.manual_seed(seed)

    @property
    def version(self) -> str:
        """Path and hash of the weights."""
        return self._version

    def write(self, prompt: Prompt, count: int) -> list[str]:
        """Sample answers.

        Raises:
            BadInput: the prompt is of messages, and the tokenizer has no chat template.
            RlhfError: the model cannot take the prompt.
        """
        try:
            ids = self._encoder.prompt(prompt)
        except BadRow as error:
            raise BadInput(str(error)) from None
        room = getattr(self._network.config, "max_position_embeddings", None)
        if room is not None and len(ids) + self._source.max_new_tokens > room:
            raise RlhfError(f"the prompt has {len(ids)} tokens; the model takes {room} with its answer")
        given = torch.tensor(ids, dtype=torch.long, device=self._network.device)[None]
        with self._lock, torch.inference_mode():
            written = self._network.generate(
                given,
                attention_mask=torch.ones_like(given),
                do_sample=True,
                temperature=self._source.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=self._source.max_new_tokens,
                num_return_sequences=count,
                pad_token_id=self._encoder.tokenizer.pad_token_id,
                eos_token_id=self._ends,
            )
        return [self._response(prompt, ids, answer) for answer in written[:, len(ids) :].cpu().numpy()]

    def _response(self, prompt: Prompt, prompt_ids: Ids, padded: Ids) -> str:
        """Decode an answer, which is padded behind its end where another one is longer."""
        ends = np.flatnonzero(np.isin(padded, self._ends))
        written = padded[: ends[0] + 1] if len(ends) else padded
        return self._encoder.response(prompt, prompt_ids, written, ended=bool(len(ends)))


def version_of(source: ModelAnswers) -> str:
    """Return how labels name a model: its path, and a hash of its weights, since paths are written anew by the next
    run.
    """
    return f"{source.model.path}@{model_identity(source.model)[:SHORT_HASH]}"
