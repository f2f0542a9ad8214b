"""An auth proxy in front of KFP whose session has ended, on a real port of loopback.

`redirect`: 302 to its login page, which answers 200 with HTML. `page`: the login page at once. `empty`: 200 with `{}`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOGIN = "/dex/auth"
PAGE = b"<html><body>Log in to Your Account</body></html>"


@contextmanager
def login_proxy(how: str) -> Iterator[tuple[str, list[str]]]:
    """Yield its address and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(self.path.partition("?")[0])
            if how == "redirect" and not self.path.startswith(LOGIN):
                self._send(302, "text/html; charset=utf-8", b"", f"{LOGIN}?client_id=kubeflow&state=s3cr3t-state")
            elif how == "empty":
                self._send(200, "application/json", b"{}")
            else:
                self._send(200, "text/html; charset=utf-8", PAGE)

        def _send(self, status: int, kind: str, body: bytes, location: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if location:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
