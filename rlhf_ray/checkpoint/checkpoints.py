"""Checkpoints of a run: begun, committed by their manifest, found again, rotated.

Layout: `<folder>/step_<N>/<role>/rank_<k>.safetensors` and, written last, `<folder>/step_<N>/manifest.json`.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_ray.checkpoint.parts import Damaged, Part, problem
from rlhf_ray.checkpoint.storage import CheckpointError, entries, exists, join, reading, remove, writing

MANIFEST = "manifest.json"
FORMAT = 2
CHECKSUM = "sha256"
"""Key of the hash of all the rest: a flipped bit in a step, a size or the driver's state is JSON as before."""


@dataclass(frozen=True)
class Manifest:
    """Step, parts of each role, and the driver's state."""

    step: int
    parts: dict[str, list[Part]]
    """By role; paths are relative to the role's folder."""

    state: dict[str, Any]
    """The driver's own state, as JSON values."""


def write_manifest(directory: str, manifest: Manifest) -> None:
    """Commit a checkpoint: from here on it is whole.

    Raises:
        CheckpointError: the state is not JSON, or storage refuses.
    """
    try:
        content: dict[str, Any] = {"format": FORMAT, **asdict(manifest)}
        text = _encoded({**content, CHECKSUM: _hash(content)})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{directory}: the driver's state is not JSON: {error}") from error
    with writing(join(directory, MANIFEST)) as stream:
        stream.write(text)


def read_manifest(directory: str) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        FileNotFoundError: the checkpoint was never committed.
        CheckpointError: it cannot be understood, or is not what was written.
    """
    path = join(directory, MANIFEST)
    try:
        with reading(path) as stream:
            content = json.loads(stream.read())
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path}: has format {content['format']}, this version reads {FORMAT}")
        checksum = content.pop(CHECKSUM)
        if checksum != _hash(content):
            raise CheckpointError(f"{path}: does not have the hash that was written in it")
        parts = {role: [Part(**part) for part in listed] for role, listed in content["parts"].items()}
        return Manifest(int(content["step"]), parts, content["state"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is not a manifest: {type(error).__name__}: {error}") from error


def _encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=True, indent=1).encode()


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(_encoded(content)).hexdigest()


STEP_FOLDER = re.compile(r"step_(\d+)")
# Hashing and remote reads release the interpreter lock, so a few files are checked at a time.
VERIFY_THREADS = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    directory: str
    manifest: Manifest

    @property
    def step(self) -> int:
        """Step after which it was taken."""
        return self.manifest.step

    @property
    def state(self) -> dict[str, Any]:
        """The driver's state."""
        return self.manifest.state

    def role(self, name: str) -> str:
        """Return the folder of a role's parts, to be given to the role's `load`.

        Raises:
            CheckpointError: the checkpoint has no such role.
        """
        if name not in self.manifest.parts:
            known = ", ".join(sorted(self.manifest.parts)) or "none"
            raise CheckpointError(f"{self.directory}: holds no {name} (roles in it: {known})")
        return join(self.directory, name)

    def check(self, name: str) -> None:
        """Read a role's parts and compare their hashes, for a role whose `load` does not do so.

        Raises:
            Damaged: one is not what was written.
        """
        listed = {name: self.manifest.parts[name]}
        if found := _problems(self.directory, Manifest(self.step, listed, {}), hashes=True):
            raise Damaged("; ".join(found))


class Checkpoints:
    """The checkpoints of one run folder.

    A checkpoint counts as whole where its manifest has its own hash and all parts have their sizes. The parts' hashes
    are compared by those who load them, each rank its own; who finds another one than was written tells `skip`.
    """

    def __init__(self, folder: str, keep: int) -> None:
        """Serve the checkpoints below `folder`, a path or URL, and keep the `keep` newest whole ones (at least 1)."""
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.folder = folder
        self.keep = keep
        self._skipped: dict[int, str] = {}
        """Steps whose parts were found to be damaged, and how."""

    def begin(self, step: int) -> str:
        """Make room for a checkpoint: the folder below which each role writes into a folder of its own name.

        What an interrupted or damaged attempt at this step left is removed; a whole one is never touched.

        Raises:
            CheckpointError: this step is saved already (ask `saved` first).
        """
        directory = self._directory(step)
        if self.saved(step):
            raise CheckpointError(f"{directory}: this step is saved already")
        self._skipped.pop(step, None)
        self._remove(step)
        return directory

    def commit(self, step: int, parts: Mapping[str, Sequence[Part]], state: dict[str, Any]) -> Checkpoint:
        """Make a checkpoint count by writing its manifest, then remove the oldest beyond `keep`.

        Args:
            step: step of `begin`.
            parts: what each role wrote, paths relative to `<begin's folder>/<role>`.
            state: the driver's state, JSON values.

        Raises:
            CheckpointError: a part is not on storage as it was written (other nodes do not see the same folder, say),
                the storage is full, or the state is not JSON.
        """
        directory = self._directory(step)
        manifest = Manifest(step, {role: list(listed) for role, listed in parts.items()}, state)
        # Sizes only: the hashes were taken while writing, and reading all back would double the time of a save.
        if found := _problems(directory, manifest, hashes=False):
            raise CheckpointError(f"checkpoint of step {step} is not whole: {'; '.join(found)}")
        write_manifest(directory, manifest)
        self._rotate(step)
        return Checkpoint(directory, manifest)

    def saved(self, step: int) -> bool:
        """Tell whether a whole checkpoint of this step exists."""
        return step not in self._skipped and _load(self._directory(step))[0] is not None

    def steps(self) -> list[int]:
        """List the steps that have a manifest, ascending."""
        return [step for step in self._started() if exists(join(self._directory(step), MANIFEST))]

    def latest(self) -> Checkpoint | None:
        """Find the newest whole checkpoint; None if none was committed. Damaged ones are skipped and reported.

        Raises:
            CheckpointError: there are committed checkpoints and all of them are damaged.
        """
        damaged = []
        for step in reversed(self.steps()):
            if step not in self._skipped:
                checkpoint, why = _load(self._directory(step))
                if checkpoint is not None:
                    return checkpoint
                self.skip(step, why)
            damaged.append(self._skipped[step])
        if damaged:
            raise CheckpointError(
                f"{self.folder}: no checkpoint is whole: {'; '.join(damaged)}; "
                "restore the files, or move the folder away to start from the beginning"
            )
        return None

    def skip(self, step: int, why: str) -> None:
        """Take a checkpoint for damaged from now on: `latest` finds an older one."""
        logger.warning("checkpoint of step %d is damaged and skipped: %s", step, why)
        self._skipped[step] = why

    def _started(self) -> list[int]:
        found = (STEP_FOLDER.fullmatch(name) for name in entries(self.folder))
        return sorted(int(match.group(1)) for match in found if match)

    def _directory(self, step: int) -> str:
        return join(self.folder, f"step_{step}")

    def _rotate(self, newest: int) -> None:
        """Remove whole checkpoints beyond `keep`, and unfinished attempts before the newest.

        Later steps are not counted: they were damaged, or the run would have resumed from them.
        """
        committed = [step for step in self.steps() if step <= newest]
        kept = set(committed[-self.keep :])
        for step in self._started():
            if step < newest and step not in kept:
                self._remove(step)

    def _remove(self, step: int) -> None:
        # The manifest goes first: a folder that lost only some of its parts must not look committed.
        directory = self._directory(step)
        remove(join(directory, MANIFEST))
        remove(directory)


def _load(directory: str) -> tuple[Checkpoint | None, str]:
    """Return the checkpoint in a folder if it is whole, else why it is not."""
    try:
        manifest = read_manifest(directory)
    except FileNotFoundError:
        return None, f"{directory} was never committed"
    except CheckpointError as error:
        return None, str(error)
    found = _problems(directory, manifest, hashes=False)
    return (None, "; ".join(found)) if found else (Checkpoint(directory, manifest), "")


def _problems(directory: str, manifest: Manifest, hashes: bool) -> list[str]:
    def check(item: tuple[str, Part]) -> str | None:
        role, part = item
        return problem(join(directory, role), part, hashes)

    items = [(role, part) for role, listed in manifest.parts.items() for part in listed]
    with ThreadPoolExecutor(VERIFY_THREADS) as pool:
        return [found for found in pool.map(check, items) if found]
