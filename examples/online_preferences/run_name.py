"""By what name a store of comparisons knows a run, and which store that is: kept in the run's folder.

So neither another machine nor another path of the folder makes another run of it.
"""

import json
import uuid
from pathlib import Path
from typing import Any

from examples.online_preferences.settings import Settings
from rlhf_ray.config.errors import BadInput
from rlhf_ray.runs.folder import RunFolder
from rlhf_ray.tracking.records import replace_file

KEPT_FILE = "comparisons.json"
SQLITE = "sqlite:///"


def run_name(settings: Settings) -> str:
    """Name a run that asks people, in a store that several runs may share; anew where it has no name yet.

    Raises:
        BadInput: the file that has it is not readable.
    """
    folder = RunFolder.of(settings).path
    if not (folder / KEPT_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        kept = {"run": uuid.uuid4().hex, "store": place_of(settings)}
        replace_file(folder / KEPT_FILE, (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode())
    return kept_name(folder)


def kept_name(folder: Path) -> str:
    """Read the name of the run of a folder.

    Raises:
        BadInput: no run that asks people has begun there, or the file that has its name is not readable.
    """
    return _kept(folder)["run"]


def refuse_other_store(settings: Settings) -> None:
    """Keep a run that has begun from asking in a second store, where nothing is of what people chose.

    Raises:
        BadInput: the folder has a run that asks in another store.
    """
    folder = RunFolder.of(settings).path
    if not (folder / KEPT_FILE).exists():
        return
    before, now = _kept(folder)["store"], place_of(settings)
    if before != now:
        named = before if "://" in before else folder / before
        raise BadInput(
            f"store: the run in {folder} asks people in {before}, not in {now}; give --store {named}, choose "
            f"another output, or, where the store itself was moved, write {now} as its store into {folder / KEPT_FILE}"
        )


def place_of(settings: Settings) -> str:
    """Tell where the store of a run is; a file in the run's folder as seen from there, wherever that folder is."""
    store, folder = settings.page().store, RunFolder.of(settings).path
    if "://" in store and not store.startswith(SQLITE):
        return store
    file = Path(store.removeprefix(SQLITE)).expanduser().resolve()
    return str(file.relative_to(folder) if file.is_relative_to(folder) else file)


def _kept(folder: Path) -> dict[str, str]:
    file = folder / KEPT_FILE
    try:
        kept: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{folder} has no {KEPT_FILE}: no run that asks people has begun there") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read: {error}") from None
    if not isinstance(kept, dict) or not all(isinstance(kept.get(name), str) for name in ("run", "store")):
        raise BadInput(f"{file} has no names of a run and its store; bring it back as it was")
    return kept
