"""Samples in a file: recorded while a run generates, replayed in place of generation."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.data.records import ASSISTANT, Episode, PromptRecord, Sample, WeightSpan
from rlhf_ray.rollout.interfaces import Groups, GroupSource, PromptBatch


def record_line(value: dict[str, Any], where: str) -> bytes:
    """Return one line; raises BadInput, naming `where`, for values that JSON cannot hold."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"rollout.record: {where}: {error}; leave that column out of the data") from error
    # Texts from the web may hold half a surrogate pair, which plain UTF-8 refuses; json.loads takes it back.
    return text.encode("utf-8", "surrogatepass") + b"\n"


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """Return all fields of a sample in JSON's types."""
    return {
        "prompt_id": sample.prompt_id,
        "group_id": sample.group_id,
        "index": sample.index,
        "attempt": sample.attempt,
        "seed": sample.seed,
        "prompt": sample.prompt,
        "response": sample.response,
        "prompt_ids": sample.prompt_ids.tolist(),
        "response_ids": sample.response_ids.tolist(),
        "written": sample.written.astype(int).tolist(),
        "behaviour_logprobs": sample.behaviour_logprobs.tolist(),
        "weight_versions": [[span.start, span.end, span.version] for span in sample.weight_versions],
        "finish_reason": sample.finish_reason,
        "rewards": sample.rewards,
        "extras": {name: {"dtype": array.dtype.str, "values": array.tolist()} for name, array in sample.extras.items()},
        "columns": sample.columns,
        "episode": None if sample.episode is None else asdict(sample.episode),
    }


def sample_from_json(value: dict[str, Any]) -> Sample:
    """Return the sample that `sample_to_json` was given."""
    return Sample(
        **value
        | {
            "prompt_ids": np.array(value["prompt_ids"], np.int32),
            "response_ids": np.array(value["response_ids"], np.int32),
            "written": np.array(value["written"], bool),
            "behaviour_logprobs": np.array(value["behaviour_logprobs"], np.float32),
            "weight_versions": [WeightSpan(*span) for span in value["weight_versions"]],
            "extras": {name: np.array(a["values"], np.dtype(a["dtype"])) for name, a in value["extras"].items()},
            # Recordings without the word have no episodes.
            "episode": _episode(value.get("episode")),
        }
    )


def _episode(value: dict[str, Any] | None) -> Episode | None:
    return value if value is None else Episode(**value | {"failure": value["failure"] and tuple(value["failure"])})


_START = b'{"format": "rlhf_ray samples 1"'
"""How every header begins; tells a recording from a user's other file."""
_Steps = dict[tuple[int, int], tuple[dict[str, Any], int]]
"""By step and seed: header, and offset of the samples."""


class Recorder:
    """Passes on the groups of another source and writes each step to `path` once its last group has come.

    The file is JSON lines: a header for each step (`step`, `seed`, `version`, `prompts`, `samples`, `bytes`), then a
    line for each sample in the order in which the groups came. Numbers are written so that they read back bit for bit.
    A step that was cut off, by a crash or a full disk, does not count, and is removed when the file is opened again; a
    step that was done again after a resume counts as it was done last.
    """

    def __init__(self, source: GroupSource, path: str | Path) -> None:
        self._source = source
        self._path = Path(path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
            _, whole = _index(self._path)
            os.truncate(self._path, whole)
        except OSError as error:
            raise BadInput(f"rollout.record: cannot write to {path}: {error.strerror or error}") from error

    def run(self, batch: PromptBatch) -> "Recording":
        """Start the source's groups; they are on the disk when the iteration has ended."""
        header = {
            "format": "rlhf_ray samples 1",
            "step": batch.step,
            "seed": batch.seed,
            "version": batch.version,
            "prompts": [prompt.prompt_id for prompt in batch.prompts],
            "samples_per_prompt": batch.samples_per_prompt,
            "greedy_last": batch.greedy_last,
        }
        return Recording(self._source.run(batch), self._path, header)


class Recording:
    """Iterator over groups that writes them at its end."""

    def __init__(self, groups: Groups, path: Path, header: dict[str, Any]) -> None:
        self._groups = groups
        self._iterator = iter(groups)
        self._path = path
        self._header = header
        self._lines: list[bytes] = []
        self._written = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[Sample]:
        try:
            group = next(self._iterator)
        except StopIteration:
            self._write()
            raise
        self._encode(group)
        return group

    def poll(self) -> list[Sample] | None:
        """Return the source's next group if it has come."""
        group = self._groups.poll()
        if group is not None:
            self._encode(group)
        return group

    def _encode(self, group: list[Sample]) -> None:
        # Before anybody adds rewards to it: what is recorded is what was generated.
        self._lines += [record_line(sample_to_json(sample), f"prompt {sample.prompt_id}") for sample in group]

    def close(self) -> None:
        """End what still runs; the step is not written."""
        self._written = True
        self._groups.close()

    def _write(self) -> None:
        if self._written:
            return
        self._written = True
        body = b"".join(self._lines)
        header = record_line(self._header | {"samples": len(self._lines), "bytes": len(body)}, "header")
        before = self._path.stat().st_size
        try:
            with self._path.open("ab") as file:
                file.write(header + body)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            os.truncate(self._path, before)
            raise RlhfError(f"rollout.record: cannot write to {self._path}: {error.strerror or error}") from error


class Replay:
    """Answers prompts with recorded samples. Raises BadInput when `path` is no recording."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise BadInput(f"rollout.replay: there is no file {self._path}")
        self._steps, _ = _index(self._path)

    def run(self, batch: PromptBatch) -> "Replayed":
        """Return the recorded groups of this step, in the order in which they came.

        Raises:
            BadInput: the step was not recorded, or with other prompts, samples per prompt or weight version.
        """
        step, seed, prompts = batch.step, batch.seed, batch.prompts
        found = self._steps.get((step, seed))
        if found is None:
            held = ", ".join(f"{step} (seed {seed})" for step, seed in sorted(self._steps)) or "none"
            raise BadInput(f"rollout.replay: {self._path} has no step {step} with seed {seed}; its steps: {held}")
        header, offset = found
        where = f"rollout.replay: step {step} of {self._path}"
        size = batch.samples_per_prompt
        asked = {"samples_per_prompt": size, "greedy_last": batch.greedy_last, "version": batch.version}
        _check_header(header, [prompt.prompt_id for prompt in prompts], asked, where)
        with self._path.open("rb") as file:
            file.seek(offset)
            samples = [sample_from_json(json.loads(line)) for line in file.read(header["bytes"]).splitlines()]
        _check_prompts(samples, prompts, where)
        groups = [samples[i : i + size] for i in range(0, len(samples), size)]
        return Replayed(groups)


class Replayed:
    """Iterator over recorded groups."""

    def __init__(self, groups: list[list[Sample]]) -> None:
        self._groups = iter(groups)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[Sample]:
        return next(self._groups)

    def poll(self) -> list[Sample] | None:
        """Return the next group; all have come."""
        return next(self._groups, None)

    def close(self) -> None:
        """Note that no more groups come."""
        self._groups = iter([])


def _index(path: Path) -> tuple[_Steps, int]:
    """Return steps that are wholly there, and the bytes they fill; BadInput when `path` is another kind of file."""
    steps: _Steps = {}
    size = path.stat().st_size
    whole = 0
    with path.open("rb") as file:
        while line := file.readline():
            if not (line.startswith(_START) or _START.startswith(line)):
                raise BadInput(f"{path}, byte {whole}: not a recording of samples; name another file")
            if not line.endswith(b"\n"):
                break
            header = json.loads(line)
            offset = file.tell()
            if offset + header["bytes"] > size:
                break
            steps[header["step"], header["seed"]] = (header, offset)
            whole = file.seek(offset + header["bytes"])
    return steps, whole


def _check_header(header: dict[str, Any], prompt_ids: list[str], asked: dict[str, Any], where: str) -> None:
    recorded = header["prompts"]
    if len(recorded) != len(prompt_ids):
        raise BadInput(f"{where} was recorded with {len(recorded)} prompts, this run asks for {len(prompt_ids)}")
    for position, (before, now) in enumerate(zip(recorded, prompt_ids, strict=True)):
        if before != now:
            raise BadInput(
                f"{where} was recorded with prompt {before} at position {position}, this run asks for prompt {now}; "
                "replay needs the data and the seed of the recording"
            )
    # Recordings without the word have no greedy responses.
    recorded_with = {"greedy_last": False} | header
    for name, value in asked.items():
        if recorded_with[name] != value:
            raise BadInput(f"{where} was recorded with {name} {recorded_with[name]}, this run asks for {value}")


def _check_prompts(samples: Sequence[Sample], prompts: Sequence[PromptRecord], where: str) -> None:
    tokens = {prompt.prompt_id: prompt.prompt_ids for prompt in prompts}
    for sample in samples:
        if sample.episode is not None and sample.episode.turns[:1] and sample.episode.turns[0]["role"] != ASSISTANT:
            continue  # its environment spoke first, so that the prompt is another
        if not np.array_equal(sample.prompt_ids, tokens[sample.prompt_id]):
            raise BadInput(
                f"{where}: prompt {sample.prompt_id} has other tokens in this run; replay needs the data, the chat "
                "template and the tokenizer of the recording"
            )
