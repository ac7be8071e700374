"""Stands in for wandb's service: takes what a client uploads, and keeps the rows of its one run."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Service(ThreadingHTTPServer):
    """The service, with what it was given."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.names: set[str] = set()
        """Ids of the runs that came."""
        self.lines: list[str] = []

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        entity = {"id": "e", "name": "me"}
        project = {"id": "p", "name": "p", "entity": entity}
        run = {"id": "x", "displayName": "run", "config": "{}", "historyLineCount": len(self.lines)}
        match re.findall(r"(?:query|mutation)\s+(\w+)", query)[0]:
            case "UpsertBucket":
                self.names.add(variables["name"])
                bucket = run | {"name": variables["name"], "project": project}
                return {"upsertBucket": {"bucket": bucket, "inserted": not self.lines}}
            case "RunResumeStatus":
                summary = {"_step": len(self.lines) - 1} | (self.rows[-1] if self.lines else {})
                bucket = run | {"name": variables["name"], "summaryMetrics": json.dumps(summary)}
                bucket |= {"logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]", "tags": []}
                bucket |= {"historyTail": json.dumps(self.lines[-1:]), "wandbConfig": json.dumps({"t": 1})}
                return {"model": project | {"bucket": bucket if self.lines else None}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.address}/file"} for name in variables["files"]]
                return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
            case "CreateArtifact":  # of a table; it is there already, so that nothing is sent
                artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": None}}
                return {"createArtifact": {"artifact": artifact}}
        viewer = dict.fromkeys(("email", "admin", "deletedAt", "apiKeys"))
        viewer |= {"id": "1", "name": "Me", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer}


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(data)
            answer = {"data": self.server.answer(asked["query"], asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            part = (json.loads(data).get("files") or {}).get("wandb-history.jsonl")
            if part is not None:
                self.server.lines[part["offset"] :] = part["content"]
        self._send(answer)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._send({})

    def do_GET(self) -> None:
        self._send({})

    def _send(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def wandb_service() -> Iterator[Service]:
    """A service that listens while the block runs."""
    service = Service()
    thread = threading.Thread(target=service.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        service.server_close()
        thread.join()
