"""A reward model: a sequence classifier of one output that reads prompt and response; or an ensemble of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from rlhf_ray.algorithms.ensembles import pessimistic, standardised
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rewards import ModelReward
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.batches import assign
from rlhf_ray.data.records import Prompt
from rlhf_ray.data.tokenization import Encoder, Ids, check_vocabulary
from rlhf_ray.models.device_memory import DeviceMemory, weights_of
from rlhf_ray.models.heads import ScalarNetwork
from rlhf_ray.models.identity import directory_identity
from rlhf_ray.models.loading import load_scalar, load_tokenizer, outline, scalar_config, unsupported
from rlhf_ray.models.positions import check_positions
from rlhf_ray.models.probe import Reading, Unfaithful, check_readings, probe_texts, scores_alone
from rlhf_ray.models.score_statistics import ScoreStatistics, statistics_of
from rlhf_ray.scoring.source import Failure, FailureKind, Scores


class ModelScorer:
    """Scores texts in batches under a token budget; a score depends on its own text alone."""

    def __init__(self, source: ModelReward, tokens_per_microbatch: int, device: str = "cpu") -> None:
        """Load the model, and the other members of its ensemble.

        Args:
            source: which models, how precise, and how many tokens it may read.
            tokens_per_microbatch: tokens of one forward pass, padding counted.
            device: of torch.

        Raises:
            BadInput: no such model, one that is no reward model, or that scores otherwise here than in Transformers; or
                members that do not belong together.
        """
        models = [ModelConfig(path=path, dtype=source.dtype) for path in (source.path, *source.ensemble)]
        for model in models:
            scalar_config(model, must_have_head=True)
        self._encoder = Encoder(shared_tokenizer(models))
        self._statistics = statistics_of(source)
        self._networks = [ScalarNetwork(load_scalar(model, seed=0)).to(device).eval() for model in models]
        self._penalty = source.disagreement_penalty
        self._max_tokens = source.max_tokens
        self._budget = tokens_per_microbatch
        self._device = device
        self._memory = DeviceMemory(torch.device(device), tuple, self._weights)
        for model, network in zip(models, self._networks, strict=True):
            self._check(model, network)

    @classmethod
    def open(cls, source: ModelReward, tokens_per_microbatch: int) -> "ModelScorer":
        """Load the models."""
        return cls(source, tokens_per_microbatch, "cuda" if source.gpus_per_worker else "cpu")

    def _weights(self) -> list[Tensor]:
        return [tensor for network in self._networks for tensor in weights_of(network)]

    @staticmethod
    def refuse(key: str, source: ModelReward) -> None:
        """Look at each member's description, tokenizer and score statistics."""
        for place, path in enumerate([source.path, *source.ensemble]):
            try:
                _refuse_member(source, path, f"{key}.max_tokens")
            except BadInput as error:
                raise BadInput(f"{key}.{f'ensemble.{place - 1}' if place else 'path'}: {error}") from error

    @staticmethod
    def identity(source: ModelReward) -> list[Any]:
        """Return hashes of the models."""
        return list(map(directory_identity, [source.path, *source.ensemble]))

    def _check(self, model: ModelConfig, network: ScalarNetwork) -> None:
        """Refuse a network whose scores of a few texts are others here than in Transformers."""
        prompt, answers = probe_texts(network.network.config)
        texts = [np.concatenate([prompt, answer]) for answer in answers]
        with torch.inference_mode():
            ids = [torch.from_numpy(text.astype(np.int64)).to(self._device) for text in texts]
            alone, largest = scores_alone(network, ids, network.pools)
        read = Reading("padded", torch.from_numpy(self._scores_of(network, texts)))
        try:
            check_readings(alone.cpu(), [read], largest, model.dtype)
        except Unfaithful as error:
            raise unsupported(model.path, network.network.config, str(error)) from error

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> Scores:
        """Score completions; those that cannot be encoded or whose score is no number are failures."""
        texts: list[Ids] = []
        refused: dict[int, str] = {}
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            try:
                ids = self._encoder.shorten(self._encoder.judged(prompt, completion), self._max_tokens)
            except BadRow as error:
                refused[row], ids = str(error), np.array([self._encoder.eos], np.int32)
            texts.append(ids)
        values = [float(value) for value in self.score_ids(texts)]
        failures = [_failure("bad input", message, row, values) for row, message in refused.items()]
        broken = [row for row, value in enumerate(values) if not np.isfinite(value) and row not in refused]
        failures += [_failure("not a number", f"the reward model gave {values[row]}", row, values) for row in broken]
        return Scores(list(values), failures)

    def score_ids(self, texts: Sequence[Ids]) -> Float32[np.ndarray, " texts"]:
        """Return scores of texts that are token ids already, in units of their training deviation where it is known.

        Those of an ensemble are the mean of its members' less the penalty of their disagreement.
        """
        scores = np.stack([self._scores_of(network, texts) for network in self._networks])
        if not self._statistics:
            return scores[0]
        means, stds = (
            torch.tensor([getattr(statistics, name) for statistics in self._statistics]) for name in ("mean", "std")
        )
        return pessimistic(standardised(torch.from_numpy(scores), means, stds), self._penalty).numpy()

    @torch.inference_mode()
    def _scores_of(self, network: ScalarNetwork, texts: Sequence[Ids]) -> Float32[np.ndarray, " texts"]:
        lengths = np.array([len(text) for text in texts], np.int32)
        scores = np.zeros(len(texts), np.float32)
        for rows in assign(lengths, 1, self._budget)[0]:
            longest = int(lengths[rows].max())
            # Padding stands on the right, where a causal network cannot see it; the score is taken by length, not by
            # looking for padding tokens, which may be EOS.
            padded = np.zeros((len(rows), longest), np.int64)
            for place, row in enumerate(rows):
                padded[place, : lengths[row]] = texts[row]
            last = torch.from_numpy(np.arange(len(rows)) * longest + lengths[rows] - 1).to(self._device)
            scores[rows] = network(torch.from_numpy(padded).to(self._device), None, last).cpu().numpy()
        return scores

    def wake(self) -> None:
        """Bring the models onto their device."""
        self._memory.wake()

    def sleep(self) -> None:
        """Keep the models in the machine's memory."""
        self._memory.sleep()

    def close(self) -> None:
        """Do nothing: nothing outlives the process."""


def _failure(kind: FailureKind, message: str, row: int, values: list[float]) -> Failure:
    values[row] = float("nan")
    return Failure(kind, message, (row,))


def shared_tokenizer(models: Sequence[ModelConfig]) -> Any:
    """Load the tokenizer of the first model, which the others must share.

    Raises:
        BadInput: one of them has another vocabulary.
    """
    first, *others = (load_tokenizer(model) for model in models)
    for model, other in zip(models[1:], others, strict=True):
        if other.get_vocab() != first.get_vocab():
            raise BadInput(
                f"{model.path}: members of an ensemble read the same tokens, but it has another vocabulary than "
                f"{models[0].path}; make it a reward source of its own"
            )
    return first


def _refuse_member(source: ModelReward, path: str, max_tokens_key: str) -> None:
    model = ModelConfig(path=path, dtype=source.dtype)
    network = scalar_config(model, must_have_head=True)
    tokenizer = load_tokenizer(model)
    check_vocabulary(model, network, tokenizer)
    check_positions(path, outline(model, scalar=True), {max_tokens_key: source.max_tokens})
    if source.ensemble or source.normalise:
        ScoreStatistics.read(path)
    elif source.normalise is None and source.measures == "reward":
        ScoreStatistics.read_if_kept(path)
    if path != source.path:
        shared_tokenizer([ModelConfig(path=source.path), model])
