"""What of the working folder a submitted job has on the cluster, and what stays behind."""

from collections.abc import Mapping
from pathlib import Path

from rlhf_ray.config.errors import BadInput

# What is never wanted on a cluster, also where there is no .gitignore.
EXCLUDES = [".git", ".venv", "outputs", "wandb", "__pycache__", "*.safetensors", "*.bin", "*.gguf"]
# Secrets of who submits: the cluster keeps what it is sent, and gives its jobs the secrets that its nodes have.
EXCLUDES += [".env", ".env.*", ".netrc", ".pgpass", ".ssh", ".aws"]


def check_sent(files: Mapping[str, str], working_dir: str) -> None:
    """Check that the files that a config names by relative paths are sent along.

    Args: files, local files and folders that the job reads, by key; working_dir, the folder that is sent.

    Raises:
        BadInput: one stays behind, as weights and what .gitignore names do.
    """
    root = Path(working_dir).expanduser().resolve()
    named = {where: root / path for where, path in files.items() if not path.startswith(("/", "~"))}
    named = {where: path for where, path in named.items() if path.exists()}
    sent = _sent_files(root) if named else set()
    for where, path in named.items():
        own = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        if left := sorted(set(own) - sent):
            raise BadInput(
                f"{where}: {_within(root, path)}: {_within(root, left[0])} is not sent along: weights, outputs and "
                "what .gitignore names stay behind; copy it to storage that every node sees, and give its absolute "
                "path there"
            )


def _within(root: Path, path: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _sent_files(root: Path) -> set[Path]:
    """Return the files of a folder that Ray sends, by Ray's own rules."""
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    sent: set[Path] = set()
    _dir_travel(root, [_get_excludes(root, EXCLUDES)], sent.add, include_gitignore=True)
    return sent
