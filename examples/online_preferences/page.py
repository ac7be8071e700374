"""The page at which people compare clips, in a process of its own: `python -m examples.online_preferences.page CONFIG`.

A run with `--judge people` starts it; CONFIG is the `config.yaml` of such a run.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from examples.online_preferences.run_name import kept_name, run_name
from examples.online_preferences.scenes import animated_svg
from examples.online_preferences.settings import Settings
from examples.online_preferences.tasks import TASKS
from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.reading.loading import load_config
from rlhf_ray.feedback.app.server import serve_page
from rlhf_ray.feedback.clips.clips import Clips
from rlhf_ray.feedback.clips.desk import ClipDesk, ClipSettings, Draw
from rlhf_ray.feedback.clips.store import ClipStore
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.jobs.people.page import open_door, say

END_SECONDS = 15
BESIDE = "beside"
"""Second argument of a page that ends with the run that started it."""


class PageEnded(RlhfError):
    """The page of a run is gone, so that nobody can compare anything."""


class RunningPage:
    """A page in a process of its own."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child

    def exit_code(self) -> int | None:
        """Return the exit code of a page that has ended by itself; None while it runs."""
        return self._child.poll()

    def end(self) -> None:
        """End it, at once if it does not go."""
        self._child.terminate()
        try:
            self._child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def draw_clips(task: str) -> Draw:
    """Return how clips of a task become pictures."""
    known = TASKS[task]

    def draw(clips: Clips) -> str:
        return animated_svg(known.scene(clips.observations[0] * known.scale), known.frames_per_second)

    return draw


def serve(settings: Settings, run: str) -> None:
    """Show the clips of a run until somebody ends this process.

    Args:
        settings: of the run.
        run: its name in the store.

    Raises:
        BadInput: the store or the port cannot be used.
    """
    page = settings.page()
    with open_door(page) as door, closing(Database(page.store)) as database:
        look = ClipSettings(TASKS[settings.task].question, settings.language)
        desk = ClipDesk(ClipStore(database, run), draw_clips(settings.task), look)
        say(f"compare clips at {door.url}")
        serve_page(desk, door.listening, door.token, door.allowed_hosts)


@contextmanager
def page_beside(settings: Settings, config: Path) -> Iterator[RunningPage]:
    """Show the page of a run while the block runs.

    Args:
        settings: of the run.
        config: file that has them, in the folder of the run.

    Raises:
        BadInput: the store or the port cannot be used.
    """
    page = settings.page()
    # What is wrong with them is said here, before the roles start.
    with open_door(page):
        Database(page.store).close()
    run_name(settings)
    command = [sys.executable, "-m", "examples.online_preferences.page", str(config), BESIDE]
    running = RunningPage(subprocess.Popen(command, stdin=subprocess.PIPE))
    try:
        yield running
    finally:
        running.end()


def end_with_input() -> None:
    """End this process when its input does: the run that started it holds the other end, also if it is killed."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: list[str]) -> int:
    """Show the page of a run."""
    if {"-h", "--help"}.intersection(arguments):
        print("python -m examples.online_preferences.page CONFIG\n\nShow the page of a run, whose config.yaml this is.")
        return 0
    try:
        if not arguments or arguments[1:] not in ([], [BESIDE]):
            raise BadInput("name the config.yaml of a run, and nothing else")
        settings = load_config(Settings, arguments[0], check_files=False)
        if BESIDE in arguments[1:]:
            end_with_input()
        serve(settings, kept_name(Path(arguments[0]).parent))
    except RlhfError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
