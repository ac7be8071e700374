"""A language model behind an OpenAI-compatible service as judge of two answers."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.jobs.judges import ServiceJudge
from rlhf_ray.config.secret_variables import read_secret
from rlhf_ray.data.retries import NoAnswer, answered
from rlhf_ray.evaluation.verdicts import Winner, agreed
from rlhf_ray.redaction.texts import redact_text

VERDICT = re.compile(r"\[\[([ABC])\]\]")
FailureKind = Literal["unreachable", "refused", "too late", "unusable answer"]


class JudgeFailed(RlhfError):
    """The service gave no verdict; `kind` says how. The message has no token in it."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to compare, as texts."""

    key: tuple[str, int]
    prompt: str
    candidate: str
    baseline: str


@dataclass(frozen=True, slots=True)
class Opinion:
    """Verdict of the service on a pair; without a winner where one of the two questions failed."""

    pair: Pair
    winner: Winner | None
    consistent: bool
    """Whether both orders had the same winner."""
    reason: str
    """The judge's words, or why there is no verdict."""


class ServiceJudging:
    """Asks about each pair twice, the second time with the answers changed round: a judge may favour a position."""

    def __init__(
        self,
        config: ServiceJudge,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Judge by a config; `sleep` and `clock` take seconds, and by default a pause ends when judging does.

        Raises:
            BadInput: the token's variable is not set.
        """
        self._config = config
        self._over = threading.Event()
        self._sleep, self._clock = sleep or self._over.wait, clock
        self._ends = clock() + config.deadline_seconds
        self._headers = {"Accept": "application/json"}
        if config.token_variable is not None:
            token = read_secret(config.token_variable, f"judges: {config.name}: token_variable")
            self._headers["Authorization"] = f"Bearer {token}"

    def opinions(self, pairs: Sequence[Pair]) -> Iterator[Opinion]:
        """Yield opinions on pairs as they come, in any order.

        Raises:
            JudgeFailed: the service refuses, is not there, or the deadline passed; what came before was handed out.
        """
        import httpx

        limits = httpx.Limits(max_connections=self._config.at_once)
        client = httpx.Client(headers=self._headers, timeout=self._config.timeout_seconds, limits=limits)
        waiting = iter(pairs)
        with client, ThreadPoolExecutor(self._config.at_once, thread_name_prefix="judge") as threads:
            asked: set[Future[Opinion]] = set()
            try:
                while True:
                    # No more in the queue than are asked at once, so that a failure leaves nothing to wait for.
                    free = self._config.at_once - len(asked)
                    asked |= {threads.submit(self._opinion, client, pair) for pair in islice(waiting, free)}
                    if not asked:
                        return
                    done, asked = wait(asked, return_when=FIRST_COMPLETED)
                    for opinion in done:
                        yield opinion.result()
            finally:
                # Nobody waits for requests that are on their way, nor for those that pause before another attempt.
                self._ends = min(self._ends, self._clock())
                self._over.set()
                client.close()

    def _opinion(self, client: Any, pair: Pair) -> Opinion:
        answers: list[str] = []
        winners: list[Winner | None] = []
        for letters, texts in (
            ({"A": "candidate", "B": "baseline"}, (pair.candidate, pair.baseline)),
            ({"A": "baseline", "B": "candidate"}, (pair.baseline, pair.candidate)),
        ):
            try:
                answer = self._ask(client, _question(pair.prompt, *texts))
                winners.append(_winner(answer, letters))
            except JudgeFailed as failure:
                if failure.kind != "unusable answer":
                    raise
                return Opinion(pair, None, False, redact_text(str(failure)))
            answers.append(answer)
        winner = agreed(*winners)
        return Opinion(pair, winner, winners[0] == winners[1], redact_text(answers[0]))

    def _ask(self, client: Any, question: str) -> str:
        body = {
            "model": self._config.model,
            "messages": [
                {"role": "system", "content": self._config.instruction},
                # Half a character, which a byte-level model may write, is no JSON that services read.
                {"role": "user", "content": question.encode("utf-8", "replace").decode()},
            ],
            "temperature": 0,
            "max_tokens": self._config.max_new_tokens,
        }
        return _content(self._post(client, f"{self._config.url.rstrip('/')}/chat/completions", body))

    def _post(self, client: Any, url: str, body: dict[str, Any]) -> Any:
        """Return the answer of the service as JSON, after as many attempts as are allowed."""
        import httpx

        config = self._config

        def send(seconds: float) -> tuple[Any, Any]:
            response = client.post(url, json=body, timeout=seconds)
            return response, response

        try:
            response = answered(
                send,
                retries=config.retries,
                timeout_seconds=config.timeout_seconds,
                left=lambda: self._ends - self._clock(),
                sleep=self._sleep,
            )
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise BadInput(f"judges: {config.name}: url: {url}: {error}") from None
        except NoAnswer as failure:
            told = f"{failure.told(config.deadline_seconds)}; {_advice(failure)}"
            raise JudgeFailed(failure.kind, f"judge {config.name}: {url}: {told}") from None
        try:
            return response.json()
        except ValueError:
            shown = redact_text(response.text)[:80]
            raise JudgeFailed("unusable answer", f"{url}: the answer is not JSON: {shown!r}") from None


def check_failures(config: ServiceJudge, failed: int, pairs: int, reason: str) -> None:
    """Stop where too many pairs have no verdict.

    Raises:
        JudgeFailed: more than `failed_verdicts` of them.
    """
    if failed > config.failed_verdicts * pairs:
        raise JudgeFailed(
            "unusable answer",
            f"judge {config.name}: {failed} of {pairs} comparisons have no verdict, more than failed_verdicts "
            f"{config.failed_verdicts:g} allows; the first: {reason[:300]}",
        )


def _question(prompt: str, first: str, second: str) -> str:
    return (
        f"<prompt>\n{prompt}\n</prompt>\n\n<answer_a>\n{first}\n</answer_a>\n\n<answer_b>\n{second}\n</answer_b>\n\n"
        "Which answer is better: [[A]], [[B]] or [[C]] (equally good)?"
    )


def _winner(answer: str, letters: dict[str, Any]) -> Winner:
    """Read the last verdict in an answer: models think aloud before they decide."""
    found = VERDICT.findall(answer)
    if not found:
        raise JudgeFailed(
            "unusable answer", f"the judge's answer has no [[A]], [[B]] or [[C]]: {redact_text(answer).strip()[:200]!r}"
        )
    winner: Winner = letters.get(found[-1], "tie")
    return winner


def _content(answer: Any) -> str:
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        content = None
    if not isinstance(content, str):
        raise JudgeFailed(
            "unusable answer",
            f"the answer has no text at choices[0].message.content: {redact_text(str(answer))[:200]!r}",
        )
    return content


def _advice(failure: NoAnswer) -> str:
    if failure.kind == "unreachable":
        return "check url, or run again later: verdicts so far are kept"
    if failure.kind == "too late":
        return "verdicts so far are kept, the same command goes on"
    if failure.status in (401, 403):
        return "set token_variable to an environment variable that holds a valid token"
    if failure.status == 404:
        return "check url (the base, ending in /v1 mostly) and model"
    return "check model and instruction"
