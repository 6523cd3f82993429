"""The page for people: one file that asks for a key and talks to the API, and loads nothing from elsewhere."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.responses import Response


@cache
def read_page() -> tuple[str, dict[str, str]]:
    """Return the page and its headers: a browser runs the page's own script and speaks to this server, nothing else."""
    html = files("luthier.serving").joinpath("page.html").read_text(encoding="utf-8")
    allowed = {
        "default-src": "'none'",
        "script-src": _hash_of(html, "script"),
        "style-src": _hash_of(html, "style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return html, {
        "Content-Security-Policy": "; ".join(f"{what} {whence}" for what, whence in allowed.items()),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }


async def answer_page() -> Response:
    """Return the page as an answer."""
    html, headers = read_page()
    return Response(html, media_type="text/html", headers=headers)


def _hash_of(html: str, tag: str) -> str:
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
