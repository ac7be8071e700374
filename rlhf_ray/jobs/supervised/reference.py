"""Log-probabilities of the reference: computed once, kept on disk, read by every later run of the same data."""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float32, Float64
from safetensors import SafetensorError
from safetensors.torch import load

from rlhf_ray.checkpoint.storage import CheckpointError, exists, filesystem, join, reading, writing
from rlhf_ray.checkpoint.tensors import write_safetensors
from rlhf_ray.data.batches import TokenBatch, pairs_of_prompts
from rlhf_ray.data.preferences import Answer, answers_batch, token_shares

AnswerSums = Float64[np.ndarray, " answers"]
Model = Callable[[TokenBatch], Float32[np.ndarray, " response_tokens"]]
"""Something that gives the log-probability of each response token of a batch."""

FORMAT = 2
"""Number of this file layout and of the way in which its values are computed."""
TENSOR = "logprobs"


class ReferenceLogprobs:
    """Summed log-probabilities of answers under the reference.

    A file is named by the hash of all token ids (so of data, tokenizer and truncation), of how much each token counts,
    and of the reference. It holds a hash of its values too: a damaged file is computed anew, and said to be.
    """

    def __init__(
        self, folder: str | None, identity: str, model: Model, tokens_per_call: int, say: Callable[[str], None]
    ) -> None:
        """Take what it works with.

        Args:
            folder: of the files, or a URL; None keeps nothing.
            identity: hash of the reference.
            model: the reference.
            tokens_per_call: tokens of answers that the reference gets at a time.
            say: takes words for the person who watches.
        """
        self._folder = None if folder is None else os.path.expanduser(folder)
        self._identity, self._model = identity, model
        self._tokens_per_call, self._say = tokens_per_call, say

    def sums(self, name: str, answers: Sequence[Answer]) -> AnswerSums:
        """Sum over each answer's tokens, from the file if there is one.

        Args:
            name: what the answers are, for messages.
            answers: in an order of the caller's, in which the result comes.
        """
        key = answers_key(self._identity, answers)
        path = None if self._folder is None else join(self._folder, f"{key}.safetensors")
        if path is not None and exists(path):
            try:
                found = _read(path, key, len(answers))
            except CheckpointError as error:
                self._say(f"{error}; computing the reference's log-probabilities anew")
            else:
                self._say(f"reference: log-probabilities of {len(answers)} {name} read from {path}")
                return found
        started = time.perf_counter()
        values = self._compute(answers)
        seconds = time.perf_counter() - started
        self._say(f"reference: log-probabilities of {len(answers)} {name} computed in {seconds:.1f} s")
        if path is not None:
            try:
                _write(path, key, values)
            except CheckpointError as error:
                self._say(f"reference: not kept for later runs: {error}")
        return values

    def _compute(self, answers: Sequence[Answer]) -> AnswerSums:
        sums = np.empty(len(answers), np.float64)
        for rows in _portions(answers, self._tokens_per_call):
            portion = [answers[row] for row in rows]
            sums[rows] = summed(self._model(answers_batch(portion)), portion)
        return sums


def summed(logprobs: Float32[np.ndarray, " response_tokens"], answers: Sequence[Answer]) -> AnswerSums:
    """Return the sum of each answer's log-probabilities, each token by its share."""
    weighted = np.concatenate([[0.0], np.cumsum(logprobs.astype(np.float64) * token_shares(answers))])
    ends = np.cumsum([len(answer.response_ids) for answer in answers])
    starts = ends - [len(answer.response_ids) for answer in answers]
    return weighted[ends] - weighted[starts]


def answers_key(identity: str, answers: Sequence[Answer]) -> str:
    """Hash a reference and all that its sums over these answers depend on."""
    digest = hashlib.sha256(json.dumps([FORMAT, identity, len(answers)]).encode())
    for answer in answers:
        digest.update(len(answer.prompt_ids).to_bytes(4, "little"))
        digest.update(len(answer.response_ids).to_bytes(4, "little"))
        digest.update(np.ascontiguousarray(answer.prompt_ids, np.int32).tobytes())
        digest.update(np.ascontiguousarray(answer.response_ids, np.int32).tobytes())
        if answer.shares is not None:
            digest.update(np.ascontiguousarray(answer.shares, np.float32).tobytes())
    return digest.hexdigest()[:32]


def _portions(answers: Sequence[Answer], tokens: int) -> Iterator[np.ndarray]:
    """Yield rows in portions of about `tokens` tokens, the longest first: rows of one length come together.

    Two answers to a prompt, one behind the other, remain so.
    """
    lengths = np.array([len(answer.prompt_ids) + len(answer.response_ids) for answer in answers])
    pairs = pairs_of_prompts([answer.prompt_ids for answer in answers])
    units = np.split(np.arange(len(answers)), np.flatnonzero(np.diff(pairs)) + 1)
    units.sort(key=lambda rows: -int(lengths[rows].max()))
    sizes = np.array([lengths[rows].sum() for rows in units])
    number = (np.cumsum(sizes) - sizes) // tokens
    for part in np.split(np.arange(len(units)), np.flatnonzero(np.diff(number)) + 1):
        yield np.concatenate([units[unit] for unit in part])


def _write(path: str, key: str, values: AnswerSums) -> None:
    # Two runs may write the same file at once, so each writes one of its own and then gives it the name.
    own = f"{path}.{uuid.uuid4().hex}"
    metadata = {"key": key, "sha256": hashlib.sha256(values.tobytes()).hexdigest()}
    with writing(own) as stream:
        write_safetensors(stream, {TENSOR: torch.from_numpy(values)}, metadata)
    files, inner = filesystem(own)
    files.mv(inner, filesystem(path)[1])


def _read(path: str, key: str, count: int) -> AnswerSums:
    try:
        with reading(path) as stream:
            content = stream.read()
        values = load(content)[TENSOR].numpy()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    right = header.get("key") == key and header.get("sha256") == hashlib.sha256(values.tobytes()).hexdigest()
    if not right or values.shape != (count,) or values.dtype != np.float64 or not np.isfinite(values).all():
        raise CheckpointError(f"{path}: is damaged")
    return values
