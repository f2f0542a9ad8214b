"""A chat-completions server on loopback that refuses what the real ones refuse."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "k-loopback"
ALLOWED = {"model", "messages", "temperature", "max_tokens"}


class ChatServer:
    """Answers by `verdict(question, a, b) -> text`; `faults` are sent first: status, headers, body."""

    def __init__(self, verdict: Callable[[str, str, str], str]) -> None:
        self.verdict = verdict
        self.faults: list[tuple[int, dict[str, str], str]] = []
        self.requests: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.url = ""
        self.lock = threading.Lock()

    def answer(self, path: str, headers: Any, raw: bytes) -> tuple[int, dict[str, str], str]:
        if path != "/v1/chat/completions":
            return self._refuse(404, f"no route {path}")
        if headers.get("Authorization") != f"Bearer {KEY}":
            return self._refuse(401, "Incorrect API key provided")
        if headers.get("Content-Type") != "application/json":
            return self._refuse(400, "Content-Type is not application/json")
        body = json.loads(raw)
        if problem := self._problem(body):
            return self._refuse(400, problem)
        with self.lock:
            self.requests.append(body)
            if self.faults:
                return self.faults.pop(0)
        pair = json.loads(body["messages"][1]["content"])
        text = self.verdict(pair["question"], pair["A"], pair["B"])
        usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return 200, {}, json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage})

    def _problem(self, body: Any) -> str:
        if not isinstance(body, dict) or not body.get("model") or not body.get("messages"):
            return "you must provide a model parameter and messages"
        if unknown := set(body) - ALLOWED:
            return f"Unrecognized request arguments: {sorted(unknown)}"
        if body.get("temperature") != 0 or not 0 < body.get("max_tokens", 1) <= 4096:
            return "temperature or max_tokens out of range"
        roles = [message.get("role") for message in body["messages"]]
        texts = [isinstance(message.get("content"), str) for message in body["messages"]]
        return "" if roles == ["system", "user"] and all(texts) else f"roles are {roles}"

    def _refuse(self, status: int, message: str) -> tuple[int, dict[str, str], str]:
        self.refused.append(message)
        return status, {}, json.dumps({"error": {"message": message, "type": "invalid_request_error"}})


@contextmanager
def chat_server(verdict: Callable[[str, str, str], str]) -> Iterator[ChatServer]:
    """Serve until the block ends."""
    state = ChatServer(verdict)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, body = state.answer(self.path, self.headers, raw)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body.encode())), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
