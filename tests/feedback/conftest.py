"""A PostgreSQL server, where the machine has one."""

import getpass
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

POSTGRESQL = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL server that listens on a socket of its own."""
    if POSTGRESQL is None:
        pytest.skip("no PostgreSQL server on this machine: apt-get install postgresql")
    # The server refuses to run as root, and no other user may look into pytest's own folders.
    account = "postgres" if os.geteuid() == 0 else getpass.getuser()
    with tempfile.TemporaryDirectory(prefix="labels-pg-") as folder:
        shutil.chown(folder, account)
        data = f"{folder}/data"
        command = [POSTGRESQL / "initdb", "-A", "trust", "-U", "labels", "-D", data]
        subprocess.run(command, check=True, capture_output=True, user=account)
        options = ["-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"]
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen([POSTGRESQL / "postgres", "-D", data, *options], user=account, stderr=log)
        try:
            ready = [POSTGRESQL / "pg_isready", "-q", "-h", folder]
            while subprocess.run(ready, check=False).returncode:
                assert server.poll() is None, (Path(folder) / "log").read_text()
                time.sleep(0.05)
            yield f"postgresql://labels@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(30)
