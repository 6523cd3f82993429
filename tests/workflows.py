"""Do what a workflow of GitHub's says, here: the `run:` steps of its jobs, in order, with their environment and their conditions.

Steps with `uses:` are GitHub's own and are left out, but their conditions are looked at; so are a job's runner and permissions, and
what waits for people: whoever calls `run_job` approves.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from commands import ROOT

WORKFLOWS = ROOT / ".github" / "workflows"
_TOKEN = re.compile(r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>\d+)|(?P<name>[A-Za-z_][\w.-]*)|(?P<sign>\|\||&&|==|!=|!|[(),]))")
_SIGNS = {"||": " or ", "&&": " and ", "!": " not "}


@dataclass
class Step:
    """What became of one step."""

    name: str
    outcome: str
    log: str = ""


@dataclass
class Done:
    """What became of a job."""

    name: str
    steps: list[Step] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    summary: str = ""

    @property
    def success(self) -> bool:
        return all(step.outcome != "failure" for step in self.steps)

    def outcomes(self) -> dict[str, str]:
        return {step.name: step.outcome for step in self.steps}

    def log(self) -> str:
        return "\n".join(f"--- {step.name}: {step.outcome}\n{step.log}" for step in self.steps)


def load(name: str) -> dict[str, Any]:
    """Return a workflow; YAML reads the key `on` as true."""
    said = yaml.safe_load((WORKFLOWS / name).read_text(encoding="utf-8"))
    return {("on" if key is True else key): value for key, value in said.items()}


def evaluate(expression: str, contexts: Mapping[str, Any]) -> Any:
    """Return the value of an expression, which is Python's but for its signs and its way to say names.

    >>> evaluate("inputs.runner || vars.RUNNER || 'ubuntu'", {"inputs": {}, "vars": {"RUNNER": "gpu"}})
    'gpu'
    >>> evaluate("!cancelled() && steps.run.outcome == 'success'", {"steps": {"run": {"outcome": "success"}}, "cancelled": False})
    True
    """
    python, place = "", 0
    while expression[place:].strip():
        found = _TOKEN.match(expression, place)
        assert found, f"not understood: {expression[place:]}"
        place, kind = found.end(), found.lastgroup
        text = found[kind]
        is_call = kind == "name" and expression[place:].startswith("(")
        if kind == "name":
            python += f"call({text!r})" if is_call else f"value({text!r})"
        else:
            python += _SIGNS.get(text, text)

    def value(name: str) -> Any:
        if name in ("true", "false"):
            return name == "true"
        found: Any = contexts
        for part in name.split("."):
            found = found.get(part, "") if isinstance(found, Mapping) else ""
        return found

    def call(name: str) -> Any:
        if name == "format":
            return lambda text, *given: re.sub(r"\{(\d+)\}", lambda number: str(given[int(number[1])]), text)
        return lambda: {"always": True, "success": not contexts.get("failed"), "failure": contexts.get("failed", False)}.get(
            name, contexts.get(name, False)
        )

    return eval(python, {"value": value, "call": call})


def filled(text: Any, contexts: Mapping[str, Any]) -> str:
    """Return a text with the values of its `${{ expressions }}`."""

    def shown(found: re.Match[str]) -> str:
        value = evaluate(found[1], contexts)
        return str(value).lower() if isinstance(value, bool) else str(value)

    return re.sub(r"\$\{\{(.*?)\}\}", shown, str(text))


@dataclass
class Runner:
    """A machine that runs workflows for a repository."""

    workspace: Path
    """The checkout."""
    temporary: Path
    environ: Mapping[str, str]
    github: Mapping[str, Any]
    variables: Mapping[str, Mapping[str, str]]
    """Environment -> name -> value; of "" those of the repository."""
    secrets: Mapping[str, Mapping[str, str]]
    """The same of secrets: a job sees those of its environment, and no others."""

    without: frozenset[str] = frozenset()
    """Names of steps that are taken for done."""

    def run_job(self, workflow: str, job: str, inputs: Mapping[str, str] | None = None, **needs: Done) -> Done:
        """Run one job.

        Args:
            workflow: its file.
            job: its name there.
            inputs: given by hand; those that are not have their defaults.
            needs: the jobs before it.
        """
        said = load(workflow)
        plan = said["jobs"][job]
        asked = ((said["on"] if isinstance(said["on"], dict) else {}).get("workflow_dispatch") or {}).get("inputs", {})
        environment = plan.get("environment", "")
        name = environment["name"] if isinstance(environment, dict) else environment
        contexts: dict[str, Any] = {
            "github": {**self.github, "workspace": str(self.workspace)},
            "inputs": {key: (inputs or {}).get(key, about.get("default", "")) for key, about in asked.items()},
            "vars": {**self.variables.get("", {}), **self.variables.get(name, {})},
            "secrets": dict(self.secrets.get(name, {})),
            "needs": {key: {"outputs": done.outputs} for key, done in needs.items()},
            "steps": {},
            "env": {},
        }
        contexts["env"] = {key: filled(value, contexts) for key, value in plan.get("env", {}).items()}
        done = Done(job)
        for number, step in enumerate(plan["steps"]):
            contexts["failed"] = not done.success
            self._step(step, number, contexts, done)
        done.outputs = {key: filled(value, contexts) for key, value in plan.get("outputs", {}).items()}
        return done

    def _step(self, step: Mapping[str, Any], number: int, contexts: dict[str, Any], done: Done) -> None:
        name = str(step.get("name") or step.get("run") or step["uses"])
        condition = re.sub(r"^\$\{\{(.*)\}\}$", r"\1", str(step.get("if", "true")).strip())
        always = re.search(r"\b(always|success|failure|cancelled)\(\)", condition)
        due = bool(evaluate(condition, contexts)) and (bool(always) or not contexts["failed"])
        found = Step(name, "skipped")
        outputs: dict[str, str] = {}
        if due and "run" in step and name not in self.without:
            found, outputs = self._run(step, name, number, contexts, done)
        elif due:
            found = Step(name, "success", "(not run here)")
        done.steps.append(found)
        if "id" in step:
            contexts["steps"][step["id"]] = {"outcome": found.outcome, "outputs": outputs}

    def _run(
        self, step: Mapping[str, Any], name: str, number: int, contexts: dict[str, Any], done: Done
    ) -> tuple[Step, dict[str, str]]:
        files = {
            f"GITHUB_{kind}": self.temporary / f"{done.name}-{number}-{kind.lower()}"
            for kind in ("OUTPUT", "ENV", "STEP_SUMMARY")
        }
        script = self.temporary / f"{done.name}-{number}.sh"
        self.temporary.mkdir(parents=True, exist_ok=True)
        script.write_text(filled(step["run"], contexts))
        for file in files.values():
            file.write_text("")
        given = {key: filled(value, contexts) for key, value in step.get("env", {}).items()}
        facts = {f"GITHUB_{key.upper()}": str(value) for key, value in self.github.items() if key != "token"}
        ended = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.workspace,
            env={**self.environ, **facts, **contexts["env"], **given, **{key: str(file) for key, file in files.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        contexts["env"] |= _pairs(files["GITHUB_ENV"])
        done.summary += files["GITHUB_STEP_SUMMARY"].read_text()
        return Step(name, "success" if ended.returncode == 0 else "failure", ended.stdout), _pairs(files["GITHUB_OUTPUT"])


def _pairs(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)


def checkout(folder: Path) -> Path:
    """Lay out what a checkout of this tree is, with an installation that is there already."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
            (folder / name).chmod((ROOT / name).stat().st_mode)
    # older than the stamps of the installation, which `make` then leaves as it is
    for name in ("pyproject.toml", "requirements.lock"):
        os.utime(folder / name, (0, 0))
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "All"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True)
    return folder
