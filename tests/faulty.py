"""A storage on a bad day: what stands between a client and a real S3 server, and goes wrong at random."""

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KINDS = ("throttled", "failed", "no answer", "answer lost", "cut off", "slow")
_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>a bad day</Message></Error>"


class Faults:
    """Which requests go wrong: of those in a row for one object no more than two, as clients try again."""

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.seen = share, Counter[str]()
        self._chance, self._lock, self._in_a_row = random.Random(seed), threading.Lock(), Counter[str]()

    def next(self, path: str) -> str | None:
        with self._lock:
            if self._chance.random() >= self.share or self._in_a_row[path] >= 2:
                self._in_a_row[path] = 0
                return None
            self._in_a_row[path] += 1
            kind = self._chance.choice(KINDS)
            self.seen[kind] += 1
            return kind


@contextmanager
def faulty(address: str, faults: Faults) -> Iterator[str]:
    """Stand before a server; yield the address at which it is reached so."""
    host = urlsplit(address).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self._body()
            kind = faults.next(self.path.partition("?")[0])
            if kind == "slow":
                time.sleep(0.5)
            elif kind in ("throttled", "failed"):
                status, code = (503, "SlowDown") if kind == "throttled" else (500, "InternalError")
                self._answer(status, [("Content-Type", "application/xml")], _ERROR.format(code=code).encode())
                return
            elif kind == "no answer":
                self._hang_up()
                return
            status, headers, content = self._forwarded(body)
            if kind == "answer lost":  # what was asked for is done, but nobody hears of it
                self._hang_up()
                return
            self._answer(status, headers, content, cut=kind == "cut off" and self.command == "GET" and len(content) > 1)

        do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.send_response_only(100)
                self.end_headers()
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _forwarded(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            kept = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect", "connection")}
            connection = http.client.HTTPConnection(host, timeout=60)
            try:
                connection.request(self.command, self.path, body, kept | {"Content-Length": str(len(body))})
                answer = connection.getresponse()
                return answer.status, answer.getheaders(), answer.read()
            finally:
                connection.close()

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
            self.send_response_only(status)
            hop = ("transfer-encoding", "connection", "content-length")
            length = next((value for name, value in headers if name.lower() == "content-length"), str(len(content)))
            for name, value in [*((n, v) for n, v in headers if n.lower() not in hop), ("Content-Length", length)]:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self._hang_up()

        def _hang_up(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:  # a client that was killed
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
