"""What `rlhf label` and `rlhf compare` share: the store, exports, and the page around the desk."""

import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.checkpoint.storage import writing
from rlhf_ray.config.data import RowSource
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.labelling import FeedbackPageConfig, FileAnswers, ModelAnswers, RolloutAnswers
from rlhf_ray.data.bad_rows import ReadReport
from rlhf_ray.data.columns import prompt_of
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.loading import usable_rows
from rlhf_ray.data.records import Prompt
from rlhf_ray.feedback.app.server import listen, serve_page
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.feedback.labelling.desk import Desk, DeskSettings
from rlhf_ray.feedback.labelling.exports import write_export
from rlhf_ray.feedback.labelling.items import Overlap, Task
from rlhf_ray.feedback.labelling.labels import Labels
from rlhf_ray.feedback.labelling.writers import AnswerFile, AnswerWriter, prompt_class
from rlhf_ray.jobs.inference.rows import check_output
from rlhf_ray.tracking.terminal import say

TOKEN_BYTES = 24
ANY_ADDRESS = ("0.0.0.0", "::")
"""Hosts that stand for all addresses of this machine."""


def settings_of(config: FeedbackPageConfig, answers_per_prompt: int) -> DeskSettings:
    """Take what the pages need out of a config."""
    return DeskSettings(
        language=config.language,
        answers_per_prompt=answers_per_prompt,
        seed=config.seed,
        lease_seconds=config.lease_minutes * 60,
        overlap=Overlap(config.overlap, config.overlap_annotators, config.seed),
    )


def read_pool(source: RowSource) -> list[tuple[Prompt, str]]:
    """Read the prompts of a data set with their classes.

    Raises:
        BadInput: nothing there, or too many bad rows (named by file and line).
    """
    report = ReadReport(source.path, source.bad_rows)

    def convert(row: Row) -> tuple[Prompt, str]:
        prompt, columns = prompt_of(row)
        report.pass_over({name: value for name, value in columns.items() if name != "class"})
        return prompt, prompt_class(columns, prompt)

    found = list(usable_rows(source, report, convert))
    show(report)
    return found


def show(report: ReadReport) -> None:
    """Print what was read of a source of rows, and what was left out."""
    for line in report.lines():
        say(line)


def export(config: FeedbackPageConfig, task: Task, path: str) -> None:
    """Write the labels of a store to a file.

    Raises:
        BadInput: the file cannot be written there, or its format cannot hold the labels.
    """
    check_output(path)
    if "://" not in config.store and not Path(config.store).expanduser().exists():
        raise BadInput(f"store: no such file: {config.store}")
    with closing(Database(config.store)) as database, writing(path) as stream:
        report = write_export(Labels(database, task).all(), stream, path, task)
    for line in report.lines(path):
        say(line)


@dataclass(frozen=True)
class Door:
    """Entrance of visitors: taken before anything slow begins."""

    listening: socket.socket
    token: str | None
    allowed_hosts: tuple[str, ...]
    url: str


@contextmanager
def open_door(config: FeedbackPageConfig) -> Iterator[Door]:
    """Listen where the config says.

    Raises:
        BadInput: the port is taken, the address is not this machine's, or the token's file cannot be used.
    """
    token = None if config.loopback else _token(config.token_file)
    with closing(listen(config.host, config.port)) as listening:
        host = socket.gethostname() if config.host in ANY_ADDRESS else config.host
        query = "" if token is None else f"?token={token}"
        yield Door(
            listening,
            token,
            config.allowed_hosts,
            f"http://{f'[{host}]' if ':' in host else host}:{config.port}/{query}",
        )


def serve(desk: Desk, door: Door) -> None:
    """Show the page until somebody presses Ctrl-C."""
    say(f"{desk.items.count()} prompts in {desk.store}")
    say(f"{door.url} (Ctrl-C ends it)")
    serve_page(desk, door.listening, door.token, door.allowed_hosts)
    say(f"labels are in {desk.store}")


def _token(file: str | None) -> str:
    """Read the token of a file, or write a new one there."""
    if file is None:
        return secrets.token_urlsafe(TOKEN_BYTES)
    path = Path(file).expanduser()
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(TOKEN_BYTES) + "\n", encoding="utf-8")
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"token_file: cannot use {file}: {error}") from None
    if len(token) < 16 or not token.isascii() or any(character.isspace() for character in token):
        raise BadInput(f"token_file: {file} must hold one word of at least 16 ASCII characters")
    return token


@contextmanager
def open_writers(
    sources: Sequence[FileAnswers | ModelAnswers | RolloutAnswers], config: FeedbackPageConfig
) -> Iterator[list[AnswerWriter]]:
    """Open whoever writes answers, in the order of the sources; engines stop when the block ends.

    Raises:
        RlhfError: a model or the engines do not start.
    """
    with ExitStack() as stack:
        engines = [source for source in sources if isinstance(source, RolloutAnswers)]
        pools = iter(stack.enter_context(_pools(engines, config)) if engines else [])
        writers: list[AnswerWriter] = []
        for source in sources:
            if isinstance(source, FileAnswers):
                writers.append(AnswerFile(source).writer())
            elif isinstance(source, ModelAnswers):
                writers.append(_model_writer(source, config.seed))
            else:
                writers.append(next(pools))
        yield writers


# A page over a file starts in a second; torch, Ray and vLLM would take ten.


def _model_writer(source: ModelAnswers, seed: int) -> AnswerWriter:
    from rlhf_ray.feedback.labelling.model_writer import ModelWriter

    return ModelWriter(source, seed)


@contextmanager
def _pools(sources: Sequence[RolloutAnswers], config: FeedbackPageConfig) -> Iterator[list[AnswerWriter]]:
    from rlhf_ray.jobs.people.engines import open_rollout_writers

    with open_rollout_writers(sources, config) as writers:
        yield list(writers)
