"""Data sets as the jobs read them."""

import os
import stat
from pathlib import Path
from typing import Literal

from rlhf_ray.config.base import Section
from rlhf_ray.config.numbers import PositiveInt, Share, Tokens
from rlhf_ray.config.paths import PathText

RowLayout = Literal[
    "auto",
    "trl",
    "sharegpt",
    "alpaca",
    "medicalgpt",
    "colossalchat",
    "deepspeed_chat",
    "hh",
    "compare",
    "questions",
    "safe_rlhf",
    "safe_rlhf_safer",
    "open_assistant",
    "open_assistant_conversations",
]
"""How a data set's rows are written."""


SPECIAL_FILES = {
    stat.S_ISFIFO: "a pipe, which can be read only once",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def special_file(path: str | Path) -> str | None:
    """Return what stands under a name that holds no rows, and may let a reader wait forever; None for others.

    Raises:
        OSError: nothing is there, or the user may not look at it.
    """
    mode = os.stat(path).st_mode
    return next((kind for is_kind, kind in SPECIAL_FILES.items() if is_kind(mode)), None)


class RowSource(Section):
    """Rows from files or a hub data set, in TRL's columns or in a layout that is known."""

    path: PathText
    """File (.jsonl, .json, .csv, .parquet, .txt, .tsv), a glob of them, a directory, or a hub name (`name:subset`)."""

    layout: RowLayout = "auto"
    """How rows are written; auto knows it by each row's columns. trl takes them as they are."""

    split: str = "train"
    """Split of a hub data set."""

    limit: PositiveInt | None = None
    """Use only the first rows."""

    bad_rows: Share = 0.01
    """Share of rows that may be unusable; they are counted and shown. Past it the job stops."""

    def text_limit(self) -> int | None:
        """Return the most tokens of a text that is learned; None where the rows are no such texts."""
        return None


class DataConfig(RowSource):
    """Rows for a job."""

    shuffle: bool = True
    """Order the rows anew in each pass, by the run's seed."""


class PromptDataConfig(DataConfig):
    """Prompts of a policy-gradient job: column `prompt`, text or messages."""

    max_prompt_tokens: Tokens = 1024
    """Longer prompts are left out, counted and shown."""


class TextDataConfig(DataConfig):
    """Supervised rows: `text`, `messages`, or `prompt` and `completion`; plain lines of a .txt file."""

    max_tokens: Tokens = 2048
    """Longer rows are cut at the end."""

    loss_on: Literal["completion", "all"] = "completion"
    """Which tokens are learned where a row has a prompt; plain text is learned whole."""

    def text_limit(self) -> int:
        """Return `max_tokens`."""
        return self.max_tokens


class RankingDataConfig(DataConfig):
    """Rankings: `prompt`, `chosen`, `rejected`; or `prompt`, `responses`, `ranks`; or lines best<TAB>...<TAB>worst.

    A pair may have a `margin`, a list `grades`.
    """

    max_tokens: Tokens = 2048
    """Longer texts lose their beginning."""

    def text_limit(self) -> int:
        """Return `max_tokens`."""
        return self.max_tokens
