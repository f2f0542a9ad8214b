"""The Leases of a Kubernetes API server, on a real port of loopback: not Kubernetes.

It enforces what Kubernetes documents for all objects (API conventions, "Concurrency Control and Consistency"): 409 for
a name that exists and for an update with an old resourceVersion, 404 for what is not there, each change a new version.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

PREFIX = "/apis/coordination.k8s.io/v1/namespaces/understudy/leases"


class LeaseApi:
    """The server, what it holds, and the status that it answers with instead, if any."""

    def __init__(self) -> None:
        self.leases: dict[str, dict[str, Any]] = {}
        self.version = 0
        self.status: int | None = None
        self.history: list[str] = []  # holders, in the order of the writes that took effect
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def client(self) -> Any:
        """The official client for this server."""
        from kubernetes import client

        configuration = client.Configuration(host=f"http://127.0.0.1:{self._server.server_address[1]}")
        configuration.retries = False
        return client.ApiClient(configuration)

    def handle(self, method: str, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self.lock:
            if self.status:
                return self.status, {}
            if method == "POST":
                name = body["metadata"]["name"]
                return (409, {}) if name in self.leases else self._store(name, body, 201)
            if name not in self.leases:
                return 404, {}
            if method == "GET":
                return 200, self.leases[name]
            old = body["metadata"].get("resourceVersion")
            if old and old != self.leases[name]["metadata"]["resourceVersion"]:
                return 409, {}
            return self._store(name, body, 200)

    def _store(self, name: str, body: dict[str, Any], status: int) -> tuple[int, dict[str, Any]]:
        assert isinstance(body["spec"]["leaseDurationSeconds"], int) and body["spec"]["leaseDurationSeconds"] > 0
        self.version += 1
        body["metadata"] |= {"resourceVersion": str(self.version), "namespace": "understudy"}
        self.leases[name] = body
        self.history.append(body["spec"].get("holderIdentity", ""))
        return status, body


class _Handler(BaseHTTPRequestHandler):
    api: LeaseApi

    def _answer(self) -> None:
        assert self.path.partition("?")[0].startswith(PREFIX), self.path
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else {}
        status, content = self.api.handle(self.command, self.path.partition("?")[0][len(PREFIX) + 1 :], body)
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, *_: object) -> None:
        return
