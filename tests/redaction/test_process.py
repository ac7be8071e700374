"""What a process prints, logs and raises has no secrets, and its streams are otherwise what they were."""

import io
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import rlhf_ray
from rlhf_ray import cli
from rlhf_ray.config.errors import BadInput
from rlhf_ray.redaction.process import HidingStream, hide_secrets, secrets_hidden
from rlhf_ray.redaction.texts import HIDDEN

SECRET = "s3same-Opens-It"
LEAK = """
import logging, os, sys, threading, warnings
from rlhf_ray import cli

def leak(config):
    secret = os.environ["MY_TOKEN"]
    print("printed", secret)
    sys.stdout.writelines(["written ", secret, "\\n"])
    logging.getLogger("anyone").warning("logged %s", secret)
    warnings.warn("warned " + secret)
    thread = threading.Thread(target=lambda: 1 / 0 if secret else None, name=secret)
    thread.start()
    thread.join()
    raise KeyError("raised", secret) from ValueError(f"https://me:{secret}@host")

import rlhf_ray.jobs.tools.plot
rlhf_ray.jobs.tools.plot.run = leak
sys.exit(cli.main())
"""


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)


def test_an_error_that_nobody_expected_is_printed_without_secrets(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAK, "plot", str(tmp_path)], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 1
    assert SECRET not in done.stdout + done.stderr
    assert done.stdout == f"printed {HIDDEN}\nwritten {HIDDEN}\n"
    for words in ("logged", "warned", "raised", "ZeroDivisionError", "Traceback"):
        assert words in done.stderr


def test_errors_that_are_expected(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", "--width", f"https://me:pw@host/{SECRET}"]) == 2
    assert cli.main([SECRET]) == 2
    shown = capsys.readouterr().err
    assert SECRET not in shown
    assert f"rlhf: unknown verb '{HIDDEN}'" in shown


def test_errors_that_reach_a_python_program(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        rlhf_ray.run({"model": SECRET, "output": str(tmp_path), SECRET: 1}, verb="sft")
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__


def test_the_whole_chain_of_an_error_is_redacted() -> None:
    def fail() -> None:
        try:
            raise ConnectionError(f"GET https://me:{SECRET}@host") from KeyError(SECRET)
        except ConnectionError as error:
            raise ExceptionGroup("together", [ValueError(SECRET, 5)]) from error

    with pytest.raises(ExceptionGroup) as caught, secrets_hidden():
        fail()
    assert caught.value.exceptions[0].args == (HIDDEN, 5)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert caught.value.__cause__.args == (f"GET https://{HIDDEN}@host",)
    assert caught.value.__cause__.__cause__ is not None
    assert caught.value.__cause__.__cause__.args == (HIDDEN,)


def test_the_file_of_an_error_is_redacted() -> None:
    with pytest.raises(FileNotFoundError) as caught, secrets_hidden():
        Path(f"/nowhere/{SECRET}/rows.jsonl").read_text()
    assert SECRET not in str(caught.value)
    assert HIDDEN in str(caught.value)


def test_streams_and_log_records_come_back(caplog: pytest.LogCaptureFixture) -> None:
    streams, factory = (sys.stdout, sys.stderr), logging.getLogRecordFactory()
    with secrets_hidden():
        inner = sys.stdout
        with secrets_hidden():
            assert sys.stdout is inner, "hidden once is enough"
        assert sys.stdout is inner
        assert (inner.encoding, inner.isatty()) == (streams[0].encoding, streams[0].isatty())
        logging.getLogger("anyone").error("at %s: %s", f"http://h?token={SECRET}", SECRET)
    assert (sys.stdout, sys.stderr) == streams
    assert logging.getLogRecordFactory() is factory
    assert caplog.messages == [f"at http://h?token={HIDDEN}: {HIDDEN}"]


def test_a_handler_that_was_there_before_writes_no_secret() -> None:
    """As those of libraries that were imported before: it holds the stream itself."""
    stream = io.StringIO()
    logger = logging.getLogger("rlhf_ray.tests.early")
    logger.addHandler(logging.StreamHandler(stream))
    with secrets_hidden():
        try:
            raise ConnectionError(f"GET https://me:{SECRET}@host") from KeyError(SECRET)
        except ConnectionError:
            logger.exception("failed with %s", SECRET)
    assert "Traceback" in stream.getvalue()
    assert SECRET not in stream.getvalue()


def test_libraries_keep_their_own_records(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class OfALibrary(logging.LogRecord):
        process_name = "engine 0"

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(OfALibrary)
    with secrets_hidden():
        logging.getLogger("anyone").error("%d: %s", 5, SECRET)
        logging.getLogger("anyone").error("%s: %s", "a", "b")
        logging.getLogger("anyone").error({"no": "text"})
    assert logging.getLogRecordFactory() is OfALibrary
    logging.setLogRecordFactory(before)
    assert caplog.messages == [f"5: {HIDDEN}", "a: b", "{'no': 'text'}"]
    assert {record.process_name for record in caplog.records} == {"engine 0"}  # type: ignore[attr-defined]
    assert caplog.records[1].args == ("a", "b"), "what has no secret is not touched"


class Unreadable(Exception):
    def __str__(self) -> str:
        raise ValueError(SECRET)


def test_an_error_whose_text_cannot_be_made() -> None:
    with pytest.raises(KeyError, match="outer") as caught, secrets_hidden():
        raise KeyError("outer") from Unreadable()
    assert isinstance(caught.value.__cause__, Unreadable)


def test_a_stream_that_was_replaced_within_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    other = io.StringIO()
    with secrets_hidden():
        sys.stdout = other
    assert sys.stdout is other


def test_threads_print_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    hide_secrets()
    assert isinstance(sys.stdout, HidingStream)
    threads = [threading.Thread(target=lambda: [print(SECRET) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    # An engine that starts changes the environment while others print.
    while any(thread.is_alive() for thread in threads):
        os.environ["COMES_AND_GOES"] = "x"
        del os.environ["COMES_AND_GOES"]
    assert text.getvalue().count(HIDDEN) == 200
    assert SECRET not in text.getvalue()
