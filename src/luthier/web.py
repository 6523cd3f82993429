"""Ask a server with a key: the gateway's administration, GitHub."""

from typing import Any
from urllib.parse import urlsplit

import requests
import requests.auth

from luthier.errors import UserError

SECONDS = 30


class _Bearer(requests.auth.AuthBase):
    """Carries a key, whatever ~/.netrc says."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def ask(
    method: str, url: str, key: str, whom: str, body: Any = None, through_proxy: bool = True, seconds: float = SECONDS
) -> Any:
    """Send a request and return what the server answers, read as JSON; None if it answers nothing.

    Args:
        method: GET, POST or PATCH.
        url: whole address.
        key: goes into the header `Authorization`, and into no error.
        whom: what an error calls the server.
        body: is sent as JSON.
        through_proxy: whether the proxies of the environment may see it.
        seconds: how long the server may be silent.

    Raises:
        UserError: if the server refuses, does not answer, or answers what is no JSON.
    """
    with requests.Session() as session:
        session.trust_env = through_proxy
        try:
            answer = session.request(method, url, json=body, auth=_Bearer(key), timeout=seconds)
            if answer.status_code >= 300:
                raise UserError(f"{whom} refused ({answer.status_code}): {answer.text[:300]}")
            return answer.json() if answer.content else None
        except requests.exceptions.JSONDecodeError:
            raise UserError(f"{whom} at {urlsplit(url).netloc} answers what is no JSON.") from None
        except requests.RequestException as error:
            raise UserError(f"{whom} does not answer at {urlsplit(url).netloc}: {type(error).__name__}") from None
