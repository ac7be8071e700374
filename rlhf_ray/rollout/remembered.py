"""Finished groups of batches that nothing was learned from yet: a resumed run takes them, and asks for the rest alone.

Where the next batches are written while the policy learns, the weights that wrote them are gone when a run resumes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Self

from rlhf_ray.checkpoint.parts import HashingStream, Part
from rlhf_ray.checkpoint.storage import join, reading, writing
from rlhf_ray.rollout.interfaces import Group, Groups, GroupSource, PromptBatch
from rlhf_ray.rollout.recording import record_line, sample_from_json, sample_to_json

FILE = "groups.jsonl"


@dataclass
class _Memory:
    """Groups of one call of `run`."""

    groups: dict[str, Group] = field(default_factory=dict)
    """By id, in the order in which they came."""
    whole: bool = False
    """Whether these are all."""


class RememberedSource:
    """Passes on the groups of another source and keeps them until they are learned from.

    Args:
        source: answers what is not remembered.
        only_whole: take batches of which all groups had come, and no others. In deterministic mode the requests of a
            batch go into an engine together, so that a part of them would be answered otherwise than the whole.
    """

    def __init__(self, source: GroupSource, *, only_whole: bool) -> None:
        self._source, self._only_whole = source, only_whole
        self._memory: dict[tuple[int, int], _Memory] = {}
        """By step and seed."""

    def run(self, batch: PromptBatch) -> "RememberedGroups":
        """Start to answer what is not remembered of a batch."""
        key = (batch.step, batch.seed)
        memory = self._memory.get(key)
        if memory is None or (self._only_whole and not memory.whole):
            memory = self._memory[key] = _Memory()
        prompts = {prompt.prompt_id: prompt for prompt in batch.prompts}
        for group in memory.groups.values():
            for sample in group:
                # A file has neither: they may be long, or nothing that JSON can hold.
                sample.prompt, sample.columns = prompts[sample.prompt_id].prompt, prompts[sample.prompt_id].columns
        known = list(memory.groups.values())
        return RememberedGroups(known, self._source.run(replace(batch, answered=frozenset(memory.groups))), memory)

    def forget(self, done: int) -> None:
        """Drop the batches of the first `done` steps, which were learned from."""
        self._memory = {key: memory for key, memory in self._memory.items() if key[0] >= done}

    def save(self, directory: str) -> list[Part]:
        """Write what is remembered into a folder of a checkpoint.

        Raises:
            CheckpointError: the storage is full, or refuses to be written.
        """
        with writing(join(directory, FILE)) as stream:
            hashing = HashingStream(stream)
            for (step, seed), memory in self._memory.items():
                header = {"step": step, "seed": seed, "groups": len(memory.groups), "whole": memory.whole}
                hashing.write(record_line(header, "checkpoint"))
                for group in memory.groups.values():
                    rows = [sample_to_json(replace(one, prompt="", columns={}, rewards={})) for one in group]
                    hashing.write(record_line({"samples": rows}, "checkpoint"))
        return [hashing.part(FILE)]

    def load(self, directory: str | None) -> None:
        """Remember what `save` wrote, and nothing else; None: nothing."""
        self._memory = {}
        if directory is None:
            return
        with reading(join(directory, FILE)) as stream:
            lines = iter(stream.read().splitlines())
        for line in lines:
            header = json.loads(line)
            groups = [list(map(sample_from_json, json.loads(next(lines))["samples"])) for _ in range(header["groups"])]
            by_id = {group[0].group_id: group for group in groups}
            self._memory[header["step"], header["seed"]] = _Memory(by_id, header["whole"])


class RememberedGroups:
    """Iterator over what is remembered of a batch, then over the groups that come, which are remembered too."""

    def __init__(self, known: list[Group], groups: Groups, memory: _Memory) -> None:
        self._known = iter(known)
        self._groups = groups
        self._iterator: Iterator[Group] = iter(groups)
        self._memory = memory

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Group:
        group = next(self._known, None)
        if group is not None:
            return group
        try:
            group = next(self._iterator)
        except StopIteration:
            self._memory.whole = True
            raise
        return self._remember(group)

    def poll(self) -> Group | None:
        """Return the next group if it has come."""
        group = next(self._known, None)
        if group is not None:
            return group
        group = self._groups.poll()
        return group if group is None else self._remember(group)

    def close(self) -> None:
        """End what still runs; no more groups come."""
        self._known = iter(())
        self._groups.close()

    def _remember(self, group: Group) -> Group:
        self._memory.groups[group[0].group_id] = group
        return group
