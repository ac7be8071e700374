"""The folder by which a run is known: its resolved config, what a start may change in it, whether it is finished."""

import fcntl
import os
import platform
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import yaml
from pydantic import ValidationError

from rlhf_ray.checkpoint.checkpoints import Checkpoint, Checkpoints
from rlhf_ray.config.errors import BadInput, Interrupted
from rlhf_ray.config.reading.loading import dump_config, dumped
from rlhf_ray.config.run import RunConfig
from rlhf_ray.runs.changes import Change, changes_between
from rlhf_ray.runs.snapshot import FolderSnapshot, holds_steps
from rlhf_ray.tracking.run_record import RunRecord
from rlhf_ray.tracking.terminal import Terminal
from rlhf_ray.tracking.tracker import Tracker

CONFIG_FILE = "config.yaml"
LOCK_FILE = ".lock"


class RunFolder:
    """`config.yaml`, `checkpoints/`, `final/` and the trackers' files under one path.

    As a block, around all that a job does: a start that ends with an error before it made anything, be it a wrong
    setting, missing resources or Ctrl-C, leaves the folder as it was, and none where there was none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        """What the person who watches should know of this start."""
        self._lock: TextIO | None = None
        self._before: FolderSnapshot | None = None

    @classmethod
    def open(cls, config: RunConfig) -> "RunFolder":
        """Create the folder, or return to it, and keep others out for as long as the object lives.

        Raises:
            BadInput: it belongs to another experiment, another process works in it, or it cannot be written.
        """
        if "://" in config.output:
            raise BadInput(f"output: {config.output} is a URL; name a folder that all machines see under the same path")
        folder = cls.of(config)
        folder.notes = folder._notes_of(folder.changes(config))
        written = folder.config_file.with_suffix(".yaml.part")
        try:
            folder._before = FolderSnapshot(folder.path, (CONFIG_FILE, LOCK_FILE))
            folder.path.mkdir(parents=True, exist_ok=True)
            folder._keep_others_out()
            written.write_text(dump_config(config), encoding="utf-8")
            written.replace(folder.config_file)
        except OSError as error:
            with suppress(OSError):
                written.unlink(missing_ok=True)
            if folder._before is not None:
                folder._before.put_back()
            raise BadInput(f"output: cannot write to {folder.path}: {error.strerror or error}") from error
        return folder

    def __enter__(self) -> Self:
        """Enter the block that the class describes."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        before, lock = self._before, self._lock
        self._before = self._lock = None
        untouched = before is not None and before.still()
        if before is not None and untouched and error is not None:
            before.put_back()
        if lock is not None:
            lock.close()
        # Ray ends the process of a job by SystemExit when SIGTERM comes.
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise Interrupted(self._interrupted(untouched, new=before is not None and before.was_new)) from None

    def _interrupted(self, untouched: bool, new: bool) -> str:
        if not untouched:
            return f"interrupted; the same command goes on from what is saved in {self.path}"
        if new:
            return "interrupted before the first step; nothing was written"
        return f"interrupted before a step was made; {self.path} is as it was"

    @classmethod
    def of(cls, config: RunConfig) -> "RunFolder":
        """Return the folder of a run, whether it exists or not."""
        return cls(Path(config.output).expanduser().resolve())

    @property
    def config_file(self) -> Path:
        """The resolved config of the run."""
        return self.path / CONFIG_FILE

    @property
    def lock_file(self) -> Path:
        """Names the process that works here."""
        return self.path / LOCK_FILE

    @property
    def checkpoints(self) -> Path:
        """Folder of `step_N` checkpoints."""
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        """The finished model in Hugging Face format; exists once the run is complete."""
        return self.path / "final"

    @property
    def exports(self) -> Path:
        """Models in Hugging Face format of steps before the last, where they are asked for."""
        return self.path / "exports"

    def stopped(self, done: int, steps: int) -> str:
        """Return the message of a run that was asked to leave before its last step."""
        message = f"stopped after step {done} of {steps}; the same command goes on from there"
        ends = [path for path in (self.final, self.final_average) if path.exists()]
        if ends:  # the run had ended before, and was then asked for more steps
            message += f". Until it has ended, what is in {' and '.join(map(str, ends))} is from before it went on"
        return message

    def _keep_others_out(self) -> None:
        """Take the folder's lock, which the system gives back when this process ends, however it ends."""
        me = f"process {os.getpid()} on {platform.node()}"
        lock = self.lock_file.open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            # An earlier job of this process may not be cleared away yet; it is over all the same.
            if holder != me:
                raise BadInput(
                    f"output: {holder} works in {self.path}; wait for it, end it, or choose another output"
                ) from None
            return
        lock.truncate(0)
        lock.write(me)
        lock.flush()
        self._lock = lock

    @property
    def final_average(self) -> Path:
        """The average of the finished model's weights, likewise."""
        return self.path / "final_average"

    def changes(self, config: RunConfig) -> list[Change]:
        """Return what differs from the config of the last start; nothing where there was none.

        Raises:
            BadInput: the run has made steps, and a setting changed of which a run has one value; or the folder's
                config is not that of a run.
        """
        if not self.config_file.exists():
            return []
        found = changes_between(self._config_before(type(config)), dumped(config))
        locked = [str(change) for change in found if change.locked]
        if locked and self._is_taken():
            raise BadInput(
                f"output: {self.path} holds a run with other settings, which stay the same within a run: "
                f"{'; '.join(locked)}. Choose another output, or remove that folder to begin anew"
            )
        return found

    def written_config(self) -> dict[str, Any]:
        """Read the config file of the run.

        Raises:
            BadInput: it is not the config of a run.
        """
        try:
            before = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise BadInput(f"{self.config_file} is not readable as YAML; move the folder away: {error}") from error
        if not isinstance(before, dict):
            raise BadInput(f"{self.config_file} is not the config of a run; move the folder away")
        return before

    def _config_before(self, schema: type[RunConfig]) -> dict[str, Any]:
        before = self.written_config()
        if not self.lock_file.exists():
            return before
        try:
            # As this version reads it: a setting that an earlier one did not have yet is no change.
            return dumped(schema.model_validate(before))
        except ValidationError:
            return before

    def _is_taken(self) -> bool:
        # A config without a lock beside it may be somebody's own file, which is not ours to replace.
        return holds_steps(self.path) or not self.lock_file.exists()

    def _notes_of(self, found: list[Change]) -> list[str]:
        """Note each setting that changed; a resume must not change what a run does without a word."""
        notes = [f"changed since the last start: {change}" for change in found]
        if any(change.locked for change in found):
            notes.insert(0, f"no step was made yet in {self.path}: it begins anew with what is said now")
        return notes


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make a folder and keep others out of it while the block runs; the system lets go however this process ends.

    Raises:
        BadInput: another process works there, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"output: cannot write to {folder}: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f"output: another process works in {folder}; wait for it, or choose another") from None
        yield


@contextmanager
def tracked_run(
    config: RunConfig, saved: Checkpoint | None, *, total_steps: int | None = None, terminal: Terminal | None = None
) -> "Iterator[tuple[RunFolder, Tracker]]":
    """Open the folder of a run, and track into it until the block ends; what resumes from a checkpoint is one run.

    Args:
        config: of the run.
        saved: the checkpoint that it resumes from; None where it begins.
        total_steps: of the whole run, for the bar.
        terminal: where to show progress; standard output by default.

    Raises:
        RlhfError: the folder is another run's, or cannot be written.
    """
    with (
        RunFolder.open(config) as folder,
        Tracker.open(
            folder.path,
            config.tracking,
            config.model_dump(mode="json"),
            run_id=saved.state["tracker_run"] if saved else None,
            total_steps=total_steps,
            notes=folder.notes,
            terminal=terminal,
        ) as tracker,
    ):
        yield folder, tracker


def finished_before(
    config: RunConfig,
    steps: int | None = None,
    *,
    exports: Sequence[Path] = (),
    deciding: Collection[str] = (),
) -> bool:
    """Tell, and say to the person who watches, whether an earlier start made all steps and wrote the model.

    Then the same command starts nothing and writes nothing.

    Args:
        config: of this start.
        steps: of the run; None: as many as the earlier start counted from its data.
        exports: what it writes at its end beside `final`.
        deciding: settings that decide how many steps there are, where `steps` does not say it.

    Raises:
        BadInput: the folder holds a run with other settings.
    """
    folder = RunFolder.of(config)
    record = RunRecord.read(folder.path)
    # "finished" is written last: a start that was killed before the model was whole left "running".
    if record is None or record.status != "finished":
        return False
    made = Checkpoints(str(folder.checkpoints), config.checkpoint.keep).steps()
    if made[-1:] != [record.total_steps if steps is None else steps]:
        return False
    if not all(export.is_dir() for export in (folder.final, *exports)):
        return False
    changed = folder.changes(config)
    if any(change.name in deciding for change in changed):
        return False
    terminal = Terminal(None, bars=False)
    terminal.message(f"finished before: all {made[-1]} steps are made, and the model is in {folder.final}")
    for change in changed:
        terminal.message(f"of no effect, as no step is left: {change}")
    return True
