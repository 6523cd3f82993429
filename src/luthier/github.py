"""What a workflow tells GitHub: a comment on the pull request of its commit, and to start another workflow.

Where it runs, and as whom, stands in the variables that GitHub sets for every step, and in GITHUB_TOKEN.
"""

from collections.abc import Mapping
from typing import Any

from luthier.errors import UserError
from luthier.web import ask

API = "https://api.github.com"
TOKEN = "GITHUB_TOKEN"  # noqa: S105  the variable's name
_PAGE = 100


def comment(markdown: str, title: str, environ: Mapping[str, str]) -> list[int]:
    """Put a comment on each pull request that the commit belongs to; the one that was put before is replaced.

    Args:
        markdown: the comment.
        title: tells comments apart: one with the same title is replaced.
        environ: with GITHUB_REPOSITORY, GITHUB_SHA and GITHUB_TOKEN.

    Returns:
        The numbers of the pull requests; none if the commit came without one.

    Raises:
        UserError: if a variable is not set, or GitHub refuses.
    """
    repository, commit, token = _required(environ, "GITHUB_REPOSITORY", "GITHUB_SHA", TOKEN)
    root, mark = f"{_api(environ)}/repos/{repository}", f"<!-- luthier: {title} -->"
    body = {"body": f"{mark}\n{markdown}"}
    numbers = [int(found["number"]) for found in _all(f"{root}/commits/{commit}/pulls", token)]
    for number in numbers:
        comments = _all(f"{root}/issues/{number}/comments", token)
        before = next((found["id"] for found in comments if found["body"].startswith(mark)), None)
        if before is None:
            ask("POST", f"{root}/issues/{number}/comments", token, "GitHub", body)
        else:
            ask("PATCH", f"{root}/issues/comments/{before}", token, "GitHub", body)
    return numbers


def dispatch(workflow: str, inputs: Mapping[str, str], environ: Mapping[str, str]) -> None:
    """Start a workflow of the repository.

    Args:
        workflow: its file, such as `deploy.yml`.
        inputs: name -> value.
        environ: with GITHUB_REPOSITORY, GITHUB_REF_NAME (the branch whose workflow is meant) and GITHUB_TOKEN.

    Raises:
        UserError: if a variable is not set, or GitHub refuses.
    """
    repository, ref, token = _required(environ, "GITHUB_REPOSITORY", "GITHUB_REF_NAME", TOKEN)
    start(_api(environ), repository, workflow, ref, token, inputs)


def start(api: str, repository: str, workflow: str, ref: str, token: str, inputs: Mapping[str, str] | None = None) -> None:
    """Start a workflow of any repository.

    Args:
        api: address of GitHub's API.
        repository: `owner/name`.
        workflow: its file.
        ref: the branch.
        token: may start workflows.
        inputs: name -> value.

    Raises:
        UserError: if GitHub refuses.
    """
    body = {"ref": ref} | ({"inputs": dict(inputs)} if inputs else {})
    ask("POST", f"{api}/repos/{repository}/actions/workflows/{workflow}/dispatches", token, "GitHub", body)


def _api(environ: Mapping[str, str]) -> str:
    return (environ.get("GITHUB_API_URL") or API).rstrip("/")


def _required(environ: Mapping[str, str], *names: str) -> list[str]:
    if missing := [name for name in names if not environ.get(name)]:
        raise UserError(
            f"{', '.join(missing)}: not set. GitHub sets them in a workflow, but for {TOKEN}, which the step is given: "
            f"`{TOKEN}: ${{{{ github.token }}}}`."
        )
    return [environ[name] for name in names]


def _all(url: str, token: str) -> list[dict[str, Any]]:
    """Return the entries of all pages of a list."""
    found: list[dict[str, Any]] = []
    page = 1
    while True:
        entries = ask("GET", f"{url}?per_page={_PAGE}&page={page}", token, "GitHub") or []
        found += entries
        if len(entries) < _PAGE:
            return found
        page += 1
