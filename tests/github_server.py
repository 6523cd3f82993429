"""What a workflow says to GitHub, kept by a server of this machine: pull requests' comments, and workflows that are started."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

TOKEN = "ghs_0123456789abcdef"


class GitHub:
    """The state, by the paths of https://docs.github.com/rest that Luthier uses."""

    def __init__(self, repository: str = "team/models") -> None:
        self.repository, self.url = repository, ""
        self.pulls: dict[str, list[int]] = {}
        """Commit -> its pull requests."""
        self.comments: dict[int, dict[int, str]] = {}
        """Pull request -> id -> text."""
        self.dispatched: list[tuple[str, dict]] = []

    def variables(self, commit: str, ref: str = "main") -> dict[str, str]:
        return {
            "GITHUB_API_URL": self.url,
            "GITHUB_REPOSITORY": self.repository,
            "GITHUB_SHA": commit,
            "GITHUB_REF_NAME": ref,
            "GITHUB_TOKEN": TOKEN,
        }

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: dict | None) -> tuple[int, object]:
        said = f"{method} {path.removeprefix(f'/repos/{self.repository}/')}"
        if found := re.fullmatch(r"GET commits/(\w+)/pulls", said):
            return 200, _page([{"number": number} for number in self.pulls.get(found[1], [])], query)
        if found := re.fullmatch(r"GET issues/(\d+)/comments", said):
            comments = self.comments.get(int(found[1]), {})
            return 200, _page([{"id": number, "body": text} for number, text in comments.items()], query)
        if found := re.fullmatch(r"POST issues/(\d+)/comments", said):
            comments = self.comments.setdefault(int(found[1]), {})
            number = sum(map(len, self.comments.values())) + 1
            comments[number] = body["body"]
            return 201, {"id": number}
        if found := re.fullmatch(r"PATCH issues/comments/(\d+)", said):
            for comments in self.comments.values():
                if int(found[1]) in comments:
                    comments[int(found[1])] = body["body"]
                    return 200, {"id": int(found[1])}
        if found := re.fullmatch(r"POST actions/workflows/([\w.-]+)/dispatches", said):
            self.dispatched.append((found[1], body))
            return 204, None
        return 404, {"message": "Not Found"}


def _page(entries: list, query: dict[str, list[str]]) -> list:
    size, page = int(query["per_page"][0]), int(query["page"][0])
    return entries[size * (page - 1) : size * page]


@contextmanager
def github() -> Iterator[GitHub]:
    state = GitHub()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            parts = urlsplit(self.path)
            allowed = self.headers["Authorization"] == f"Bearer {TOKEN}"
            status, said = (
                state.answer(self.command, parts.path, parse_qs(parts.query), body)
                if allowed
                else (401, {"message": "Bad credentials"})
            )
            text = b"" if said is None else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_PATCH(self) -> None:
            self._serve()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()
