"""Hiding secrets in all that a process prints, logs and raises."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rlhf_ray.redaction.texts import hide_values, redact_text

STREAMS = ("stdout", "stderr")


class HidingStream:
    """A text stream whose writers cannot write a secret; all else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text without the secrets of this process."""
        # By value alone: the address of a labelling page is shown with its token, which is meant for who reads it.
        self._stream.write(hide_values(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)


class HidingRecords:
    """Makes log records without secrets in message and error, whichever handler takes them.

    Args:
        factory: what makes records otherwise; libraries have their own.
    """

    def __init__(self, factory: Callable[..., logging.LogRecord]) -> None:
        self.factory = factory

    def __call__(self, *arguments: Any, **named: Any) -> logging.LogRecord:
        """Make a record."""
        record = self.factory(*arguments, **named)
        if record.exc_info and record.exc_info[1] is not None:
            hide_in_error(record.exc_info[1])
        try:
            message = record.getMessage()
        except Exception:  # logging itself tells what is wrong with such a call
            return record
        told = redact_text(message)
        if told != message:
            record.msg, record.args = told, None
        return record


@contextmanager
def secrets_hidden() -> Iterator[None]:
    """Hide secrets in what is printed and logged within the block, and in the errors that leave it."""
    before = {name: getattr(sys, name) for name in STREAMS}
    factory = logging.getLogRecordFactory()
    hide_secrets()
    hiding = {name: getattr(sys, name) for name in STREAMS}
    records = logging.getLogRecordFactory()
    try:
        yield
    except BaseException as error:
        hide_in_error(error)
        raise
    finally:
        for name, stream in before.items():
            if getattr(sys, name) is hiding[name]:
                setattr(sys, name, stream)
        if logging.getLogRecordFactory() is records:
            logging.setLogRecordFactory(factory)


def hide_secrets() -> None:
    """Hide secrets in all that this process prints and logs from now on. More than once is as good as once."""
    for name in STREAMS:
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, HidingStream):
            setattr(sys, name, HidingStream(stream))
    factory = logging.getLogRecordFactory()
    if not isinstance(factory, HidingRecords):
        logging.setLogRecordFactory(HidingRecords(factory))


def hide_in_error(error: BaseException) -> None:
    """Redact the texts of an error and of all that it came from."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        _hide_in_arguments(one)
        # Assigning a cause also says that the context is not shown, which is for whoever raised the error to say.
        suppressed = one.__suppress_context__
        one.__cause__, one.__context__ = _told(one.__cause__), None if suppressed else _told(one.__context__)
        one.__suppress_context__ = suppressed
        waiting += [inner for inner in (one.__cause__, one.__context__) if inner is not None]
        waiting += getattr(one, "exceptions", ())


def _hide_in_arguments(error: BaseException) -> None:
    told = tuple(redact_text(part) if isinstance(part, str) else part for part in error.args)
    if told != error.args:
        error.args = told
    if isinstance(error, OSError):
        # Its text is made of these, whatever its arguments are.
        for name in ("strerror", "filename", "filename2"):
            part = getattr(error, name)
            if isinstance(part, str) and redact_text(part) != part:
                setattr(error, name, redact_text(part))


def _told(error: BaseException | None) -> BaseException | None:
    """Return the error, or one in its place where it has a secret that does not come from its arguments."""
    if error is None:
        return None
    _hide_in_arguments(error)
    try:
        text = str(error)
    except Exception:  # its own code fails, and shows nothing
        return error
    told = redact_text(text)
    return error if told == text else Exception(f"{type(error).__name__}: {told}").with_traceback(error.__traceback__)


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that nobody caught, as `sys.excepthook` does, without secrets."""
    import traceback

    print(redact_text("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
