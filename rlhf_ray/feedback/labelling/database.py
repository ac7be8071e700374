"""The database behind a store of labels: SQLite made fit for several writers, or PostgreSQL."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, insert, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.feedback.labelling import tables

BUSY_SECONDS = 30.0
"""How long a writer waits for the others; each holds the lock for milliseconds."""

CONNECT_SECONDS = 10
"""How long PostgreSQL may take to answer at all."""

CONNECTIONS = 32
"""At most so many threads of a page use the store at once; others wait."""

_DUMP = partial(json.dumps, ensure_ascii=False)


class StoreError(RlhfError):
    """The store did not take or give something; the message says what to do. Nothing was stored."""


class Database:
    """Transactions on a store. Safe to use from several threads, and from several processes at once."""

    def __init__(self, store: str) -> None:
        """Open a store, and make it where there is none.

        Args:
            store: a file of SQLite, or a URL of SQLite or PostgreSQL.

        Raises:
            BadInput: it cannot be opened, or is no store of labels.
        """
        self.shown = store
        """Name for messages."""
        is_sqlite = "://" not in store or store.startswith("sqlite:")
        self._engine = _sqlite(store) if is_sqlite else _postgresql(store)
        try:
            with self._engine.begin() as connection:
                # Two pages that start at once must not both make the tables.
                if not is_sqlite:
                    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(8904)")
                tables.metadata.create_all(connection)
                layout = connection.scalar(select(tables.about.c.layout))
                if layout is None:
                    connection.execute(insert(tables.about).values(layout=tables.LAYOUT))
                elif layout != tables.LAYOUT:
                    raise BadInput(
                        f"store: {store} has layout {layout}, this version writes {tables.LAYOUT}; "
                        "export it by the version that made it, or name another store"
                    )
        except SQLAlchemyError as error:
            self._engine.dispose()
            raise BadInput(f"store: {store}: {_reason(error)}") from None

    @property
    def skips_locked_rows(self) -> bool:
        """Whether writers wait for rows, not for the whole store."""
        return self._engine.dialect.name == "postgresql"

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Begin a transaction that writes; all of it is stored when the block ends, or nothing.

        Raises:
            StoreError: the store is gone, full or busy for too long. `IntegrityError` passes as it is.
        """
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Begin a transaction that only reads, and waits for no writer.

        Raises:
            StoreError: the store is gone.
        """
        with self._translated(), self._engine.connect().execution_options(reads_only=True) as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise StoreError(f"store: {self.shown}: {_reason(error)}") from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _sqlite(store: str) -> Engine:
    path = Path(store.removeprefix("sqlite:///")).expanduser()
    if path.is_dir():
        raise BadInput(f"store: {store} is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"store: cannot make the folder of {store}: {error.strerror}") from None
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadInput(f"store: no permission to write {store}")
    engine = create_engine(
        f"sqlite:///{path}",
        json_serializer=_DUMP,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        pool_size=CONNECTIONS,
    )
    event.listen(engine, "connect", _make_concurrent)
    event.listen(engine, "begin", _begin)
    return engine


def _make_concurrent(connection: Any, _: Any) -> None:
    # The driver would begin transactions by itself, and only at the first change: too late to be sure of the lock.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    connection.execute("PRAGMA journal_mode = WAL")
    # In WAL mode the weaker setting may lose the last clicks when the power fails.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: Connection) -> None:
    # A transaction that reads first and then writes fails at once where another wrote in between; taking the write
    # lock at the beginning makes it wait instead.
    reads = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _postgresql(store: str) -> Engine:
    try:
        url = make_url(store).set(drivername="postgresql+psycopg")
        return create_engine(
            url,
            json_serializer=_DUMP,
            pool_size=CONNECTIONS,
            pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_SECONDS},
        )
    except ModuleNotFoundError:
        raise BadInput(f"store: {store}: PostgreSQL needs psycopg: pip install 'psycopg[binary]'") from None
    except (ArgumentError, ValueError) as error:
        raise BadInput(f"store: {store}: {error}") from None


def _reason(error: SQLAlchemyError) -> str:
    """Return what the database said, in one line."""
    said = str(error.orig if isinstance(error, DBAPIError) else error).strip()
    line = said.splitlines()[0] if said else type(error).__name__
    if "locked" in line:
        return f"other processes kept it busy for {BUSY_SECONDS:g} s; nothing was stored, try again"
    if "not a database" in line:
        return "is a file, but not a database of SQLite; name another"
    return line
