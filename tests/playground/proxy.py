"""A proxy with a key of its own in front of a server, which it has under another root."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2

from tests.server.served import HTTP

ROOT = "/models"


@contextmanager
def proxy(base_url: str, key: str) -> Iterator[str]:
    """Starts one; its address with the root.

    Args:
        base_url: of the server.
        key: without which ``/v1`` is a 401, in the words of vLLM's ``--api-key``.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass_on(None)

        def do_POST(self) -> None:
            self._pass_on(self.rfile.read(int(self.headers["content-length"])))

        def log_message(self, *args: object) -> None:
            pass

        def _pass_on(self, body: bytes | None) -> None:
            path = self.path.removeprefix(ROOT)
            if path.startswith("/v1") and self.headers["authorization"] != f"Bearer {key}":
                self._answer(401, "application/json", b'{"error":"Unauthorized"}')
                return
            kind = {"content-type": "application/json"}
            method = "GET" if body is None else "POST"
            answer = httpx2.request(method, base_url + path, content=body, headers=kind, **HTTP)
            self._answer(answer.status_code, answer.headers["content-type"], answer.content)

        def _answer(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}{ROOT}"
        finally:
            server.shutdown()
            thread.join()
