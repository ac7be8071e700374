"""What a checkpoint consists of; written last, so that its presence means that all parts were written."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_ray.checkpoint.parts import Part
from rlhf_ray.checkpoint.storage import CheckpointError, join, reading, writing

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
