"""What a PPO run reads: prompts to learn from, prompts to be evaluated on, and texts that are mixed in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from rlhf_ray.algorithms.aggregation import token_weights
from rlhf_ray.algorithms.losses import PretrainingLoss
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.ppo import PPOConfig, PretrainingConfig
from rlhf_ray.data.cursor import Cursor
from rlhf_ray.data.loading import Loaded, read_prompts, read_supervised
from rlhf_ray.data.records import PromptRecord
from rlhf_ray.data.rows import SupervisedRow, supervised_batch
from rlhf_ray.training.microbatch import ExtraBatch


class Pretraining:
    """Hands out the texts of each optimizer step, each once in a pass over them."""

    def __init__(self, config: PretrainingConfig, texts: Loaded[SupervisedRow], seed: int) -> None:
        self._config = config
        self._rows = texts.rows
        ids = [str(row) for row in range(len(texts.rows))]
        self._cursor = Cursor(ids, seed, config.data.shuffle, texts.fingerprint)

    def draw(self) -> ExtraBatch:
        """Draw the next `batch_size` rows; their mean negative log-likelihood is weighed by the coefficient."""
        taken = self._cursor.take(self._config.batch_size)
        self._cursor.finish(taken)
        batch = supervised_batch([self._rows[int(row)] for row in taken])
        learned, offsets = torch.from_numpy(batch.written), torch.from_numpy(batch.response_offsets)
        weight = token_weights("token_mean", learned, offsets).numpy()
        return ExtraBatch(batch, PretrainingLoss(self._config.coefficient), {"weight": weight})

    def state(self) -> dict[str, Any]:
        """Return all that `load` needs."""
        return self._cursor.state()

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            BadInput: the texts have changed.
        """
        self._cursor.load(state)


@dataclass(frozen=True)
class PPOData:
    """Data sets, read and tokenized."""

    config: PPOConfig
    prompts: Loaded[PromptRecord]
    held_out: Loaded[PromptRecord] | None
    texts: Loaded[SupervisedRow] | None

    @classmethod
    def read(cls, config: PPOConfig, tokenizer: Any, tools: Sequence[dict[str, Any]] = ()) -> "PPOData":
        """Read what a config names; `tools` are what the policy may call.

        Raises:
            BadInput: a data set cannot be read, or nothing is left of it.
        """
        held_out = config.evaluation.data
        data = cls(
            config,
            prompts=read_prompts(config.data, tokenizer, tools),
            held_out=read_prompts(held_out, tokenizer, tools) if held_out is not None else None,
            texts=read_supervised(config.ptx.data, tokenizer) if config.ptx is not None else None,
        )
        if config.rollout.environment is not None:
            data._refuse_texts()
        return data

    def _refuse_texts(self) -> None:
        """Refuse prompts to which an environment could not answer by the chat template."""
        for key, read in (("data", self.prompts), ("evaluation.data", self.held_out)):
            texts = [record.prompt_id for record in read.rows if isinstance(record.prompt, str)] if read else []
            if texts:
                raise BadInput(
                    f"{key}: prompt {texts[0]} is a text, and episodes with an environment begin with messages; write "
                    '`prompt` as [{"role": "user", "content": ...}]'
                )

    def report(self) -> Iterator[str]:
        """Yield lines that say what was left out of each data set, and why."""
        for read in (self.prompts, self.held_out, self.texts):
            if read is not None:
                yield from read.report.lines()

    @cached_property
    def by_id(self) -> dict[str, PromptRecord]:
        """The prompts to learn from."""
        return {record.prompt_id: record for record in self.prompts.rows}

    def cursor(self) -> Cursor:
        """Make the cursor that hands the prompts out, from the first on."""
        return Cursor(list(self.by_id), self.config.seed, self.config.data.shuffle, self.prompts.fingerprint)

    def pretraining(self) -> Pretraining | None:
        """Make what draws the texts, from the first on; None where none are mixed in."""
        if self.config.ptx is None or self.texts is None:
            return None
        return Pretraining(self.config.ptx, self.texts, self.config.seed)
