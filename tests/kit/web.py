"""Web servers that say whether they are ready, for checks that look behind an open door."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kit.edge import connect


@contextlib.contextmanager
def web(
    name: str, *, ready: bool, answers: threading.Event | None = None, host: str = "127.0.0.1", port: int = 0
) -> Iterator[str]:
    """A web server whose `/` says whether it is ready, once `answers` is set. Yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if answers is not None:
                answers.wait()
            self.send_response(200 if ready else 503)
            self.end_headers()
            self.wfile.write(name.encode())

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    with Server((host, port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"{host}:{server.server_address[1]}"
        if answers is not None:
            answers.set()
        server.shutdown()
        thread.join()


def page(port: int) -> str:
    with connect(port) as one:
        one.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with one.makefile("rb") as stream:
            return stream.read().split(b"\r\n\r\n")[-1].decode()
