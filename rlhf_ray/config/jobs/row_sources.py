"""Where `rlhf data` gets its rows."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlhf_ray.config.base import Section
from rlhf_ray.config.data import RowLayout, RowSource
from rlhf_ray.config.numbers import PositiveInt, Retries, Seconds, Share
from rlhf_ray.config.secret_variables import SecretVariable
from rlhf_ray.redaction.texts import quoted_address

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


class FileSource(RowSource):
    """Local files, files behind URLs (s3://, gs://, https://), or a hub data set."""

    kind: Literal["files"] = "files"
    """Chooses this kind."""

    name: str | None = None
    """Name in the manifest, unique. None: the path."""

    licence: str = "unknown"
    """Licence of the rows, for the manifest."""


class HttpSource(Section):
    """Rows that an HTTP service hands out as JSON, page by page; they are kept in the output folder."""

    kind: Literal["http"]
    """Chooses this kind."""

    name: str
    """Name in the manifest, unique, and of the file that keeps the rows: letters, digits, `-`, `_`."""

    url: str
    """First page, http:// or https://. Its answer is JSON, or a JSON object on each line."""

    rows: str = Field(default="", min_length=0)
    """Where the rows stand in an answer, such as `data.rows`. Empty: the answer is the list."""

    row: str = Field(default="", min_length=0)
    """Where the row stands in each of those, such as `row`. Empty: it is the row."""

    next: str | None = None
    """Where an answer gives the next page: its URL, or a cursor for `next_parameter`. None: one page, or by offset."""

    next_parameter: str | None = None
    """Query parameter that takes the cursor."""

    offset_parameter: str | None = None
    """Query parameter that takes the number of rows so far; an answer without rows is the last."""

    token_variable: SecretVariable | None = None
    """Environment variable with a token, sent as `Authorization: Bearer`. The token itself never stands in a config."""

    timeout_seconds: Seconds = 30
    """Limit of one request."""

    deadline_seconds: Seconds = 3600
    """Limit of the whole source, retries included."""

    retries: Retries = 5
    """Further attempts of a request that failed (no connection, 408, 425, 429, 5xx), with growing pauses."""

    layout: RowLayout = "auto"
    """How rows are written; auto knows it by each row's columns."""

    limit: PositiveInt | None = None
    """Take only the first rows."""

    bad_rows: Share = 0.01
    """Share of rows that may be unusable; they are counted and shown. Past it the job stops."""

    licence: str = "unknown"
    """Licence of the rows, for the manifest."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not FILE_NAME.fullmatch(self.name):
            raise ValueError(f"name: names a file: letters, digits, - and _, not {self.name!r}")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url: begins with http:// or https://, not {quoted_address(self.url, 40)}")
        if self.next is not None and self.offset_parameter is not None:
            raise ValueError("offset_parameter: pages are found by `next` or by offset; leave out one of them")
        if self.next_parameter is not None and self.next is None:
            raise ValueError("next_parameter: takes the cursor that stands at `next`; say where that is")
        return self


Source = Annotated[FileSource | HttpSource, Field(discriminator="kind")]
