"""A trained reward model in this process, to score texts with; no Ray."""

from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any, Literal

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.model import Dtype
from rlhf_ray.config.rewards import ModelReward

Text = str | Sequence[dict[str, Any]]
"""A text, or a conversation as messages with `role` and `content`."""

NAMED_FAILURES = 3
"""Of the texts that have no score."""


class RewardModel:
    """Scores prompts with their completions as `rlhf ppo` and `rlhf score` do."""

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        ensemble: Sequence[str | PathLike[str]] = (),
        disagreement_penalty: float = 0.0,
        dtype: Dtype = "float32",
        max_tokens: int = 2048,
        tokens_per_microbatch: int = 8192,
        device: Literal["cpu", "cuda"] | None = None,
    ) -> None:
        """Load a reward model, such as `final` of a run of `rlhf reward`.

        Args:
            path: model directory or hub name.
            ensemble: further members beside it.
            disagreement_penalty: how much the members' disagreement lowers a score.
            dtype: type of the forward pass.
            max_tokens: longer texts lose their beginning.
            tokens_per_microbatch: tokens of one forward pass, padding counted.
            device: of torch. None: a GPU where there is one.

        Raises:
            BadInput: no such model, or one that is no reward model.
        """
        import torch
        from pydantic import ValidationError

        from rlhf_ray.scoring.model import ModelScorer

        try:
            source = ModelReward(
                path=fspath(path),
                ensemble=[fspath(member) for member in ensemble],
                disagreement_penalty=disagreement_penalty,
                dtype=dtype,
                max_tokens=max_tokens,
            )
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            raise BadInput(f"{'.'.join(map(str, found['loc']))}: {found['msg']}, not {found['input']!r}") from None
        self._scorer = ModelScorer(
            source, tokens_per_microbatch, device or ("cuda" if torch.cuda.is_available() else "cpu")
        )

    def score(self, prompts: Sequence[Text], completions: Sequence[str] | None = None) -> list[float]:
        """Score texts, higher is better.

        Args:
            prompts: what was asked, each a text or messages.
            completions: an answer to each. None: `prompts` are whole texts, or conversations that the assistant ends.

        Raises:
            BadInput: there are not as many completions as prompts, or a text cannot be read.
            RlhfError: the model gave no number.
        """
        if isinstance(prompts, str) or isinstance(completions, str):
            raise BadInput("prompts and completions are lists of texts, not one text; write [text]")
        if completions is None:
            divided = [_divide(text) for text in prompts]
            prompts, completions = [prompt for prompt, _ in divided], [completion for _, completion in divided]
        if len(prompts) != len(completions):
            raise BadInput(f"{len(prompts)} prompts, but {len(completions)} completions")
        asked = [prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt] for prompt in prompts]
        scores = self._scorer.score(asked, completions, {})  # type: ignore[arg-type]
        if scores.failures:
            named = [f"text {row}: {one.message}" for one in scores.failures for row in one.rows]
            more = f" (and {len(named) - NAMED_FAILURES} more)" if len(named) > NAMED_FAILURES else ""
            error = BadInput if all(one.kind == "bad input" for one in scores.failures) else RlhfError
            raise error("; ".join(named[:NAMED_FAILURES]) + more)
        return [float(value) for value in scores.values if value is not None]


def _divide(text: Text) -> tuple[Text, str]:
    """Divide a whole text, or a conversation, into prompt and completion."""
    if isinstance(text, str):
        return "", text
    if not text or text[-1].get("role") != "assistant":
        raise BadInput("a conversation to be scored ends with a message of the assistant")
    return text[:-1], text[-1]["content"]
