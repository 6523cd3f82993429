"""A real server of OpenAI's chat completions on this machine, with the tiny model behind it, and with whatever ails real ones."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from luthier.text.chat import encode_prompt, end_tokens

KEY = "sk-test-0123456789"


def continue_greedily(model: Any, tokenizer: Any, prompt: list[int], limit: int) -> tuple[str, list[float], str]:
    """Return the likeliest answer, one token after the other without any cache, the log-probabilities, and why it ended."""
    tokens, told, ends = list(prompt), [], end_tokens(tokenizer)
    with torch.inference_mode():
        for _ in range(limit):
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].float().log_softmax(-1)
            tokens.append(int(logits.argmax()))
            told.append(float(logits[tokens[-1]]))
            if tokens[-1] in ends:
                return tokenizer.decode(tokens[len(prompt) : -1], skip_special_tokens=True), told, "stop"
    return tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True), told, "length"


@dataclass
class Server:
    """What the server does, and what it saw."""

    model: Any
    tokenizer: Any
    address: str = ""
    key: str | None = None
    """The key that it asks for."""
    troubles: list[str] = field(default_factory=list)
    """What happens to the next requests, in turn; an empty string is no trouble."""
    unknown: tuple[str, ...] = ()
    """Fields that it refuses."""
    context: int = 4096
    """Tokens of prompt and answer together."""
    wait: str = "0"
    """What it says in Retry-After."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of all requests."""
    times: list[float] = field(default_factory=list)
    """When they came."""
    headers: list[dict[str, str]] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    delay: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        """Return what stands before `/chat/completions`."""
        return f"{self.address}/v1"

    def asked(self) -> list[str]:
        """Return what was asked, but for the probe."""
        return [body["messages"][-1]["content"] for body in self.seen if body["messages"][-1]["content"] != "Hello"]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    us: Server

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def tell(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """Answer with JSON, or with a text as it is."""
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, message: str, code: str = "", **headers: str) -> None:
        """Answer with an error as OpenAI spells it."""
        self.tell(status, {"error": {"message": message, "type": "error", "code": code}}, headers)

    def allowed(self) -> bool:
        """Check the key; like some real servers, repeat it in the error."""
        given = self.headers.get("Authorization", "")
        if self.us.key is None or given == f"Bearer {self.us.key}":
            return True
        self.refuse(401, f"Incorrect API key provided: {given.removeprefix('Bearer ')}.")
        return False

    def do_GET(self) -> None:
        if not self.allowed():
            return
        if self.path == "/v1/models":
            self.tell(200, {"object": "list", "data": [{"id": "tiny-llama"}, {"id": "other"}]})
        else:
            self.tell(404, "<html>not here</html>")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        us = self.us
        with us.lock:
            us.seen.append(body)
            us.times.append(time.monotonic())
            us.headers.append(dict(self.headers))
            trouble = us.troubles.pop(0) if us.troubles else ""
            us.under_way += 1
            us.most_under_way = max(us.most_under_way, us.under_way)
        try:
            time.sleep(us.delay)
            self.answer(body, trouble)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client did not wait
        finally:
            with us.lock:
                us.under_way -= 1

    def answer(self, body: dict[str, Any], trouble: str) -> None:
        if trouble == "drop":
            self.close_connection = True
            self.connection.close()
        elif trouble == "half":
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif trouble == "slow":
            time.sleep(1.5)
            self.tell(200, {})
        elif trouble == "quota":
            self.refuse(429, "You exceeded your current quota.", "insufficient_quota")
        elif trouble == "moved":
            self.tell(308, "", {"Location": "https://elsewhere.example/v1"})
        elif trouble.isdecimal():
            self.refuse(int(trouble), "Try again later.", **{"Retry-After": self.us.wait} if trouble in ("429", "503") else {})
        elif trouble:
            self.tell(200, trouble)
        elif self.allowed():
            self.complete(body)

    def complete(self, body: dict[str, Any]) -> None:
        us = self.us
        if self.path != "/v1/chat/completions":
            self.tell(404, "<html>not here</html>")
            return
        if body["model"] != "tiny-llama":
            self.refuse(404, f"The model `{body['model']}` does not exist.", "model_not_found")
            return
        for name in us.unknown:
            if name in body:
                instead = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
                self.refuse(400, f"Unsupported parameter: '{name}' is not supported with this model.{instead}")
                return
        limit = body.get("max_tokens") or body["max_completion_tokens"]
        turns = [
            {name: json.dumps(value) if name == "tool_calls" else value for name, value in turn.items()}
            for turn in body["messages"]
        ]
        prompt = encode_prompt(us.tokenizer, turns)
        if len(prompt) + limit > us.context:
            self.refuse(400, f"This model's maximum context length is {us.context} tokens, however you requested more.")
            return
        with us.lock:
            text, told, finish = continue_greedily(us.model, us.tokenizer, prompt, limit)
        if "forbidden" in body["messages"][-1]["content"]:
            text, finish = "", "content_filter"
        logprobs = {"content": [{"token": "", "logprob": value} for value in told]} if body.get("logprobs") else None
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, "logprobs": logprobs}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(told)}
        self.tell(200, {"id": "x", "object": "chat.completion", "model": "tiny-llama-1", "choices": [choice], "usage": usage})


@contextmanager
def openai_server(model: Any, tokenizer: Any, **settings: Any) -> Iterator[Server]:
    """Start a server, and yield what it does and saw; it ends with the context."""
    us = Server(model, tokenizer, **settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Ours", (Handler,), {"us": us}))
    server.daemon_threads = True
    us.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield us
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
