"""The training worker, which kills or holds itself at a chosen moment; never imported by a test.

    python -m killed_worker FOLDER   in the place of the worker: does what FOLDER/moment.json says, once
    python killed_worker.py          answers requests, one JSON line each, by forked workers: they need not import torch anew

A moment is `{"call": NAME, "number": n, "after": bool, "hold": bool}`: at the n-th call of a function of `CALLS`, before
or after it is done, the process prints where it is and ends by SIGKILL; or it waits there until FOLDER/go exists.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from luthier import artefacts
from luthier.pipelines.training import worker

CALLS: dict[str, tuple[Any, str]] = {
    "optimiser step": (torch.optim.AdamW, "step"),
    "file of a checkpoint": (torch, "save"),
    "manifest": (artefacts, "write_manifest"),
    "rename": (Path, "rename"),
    "clearing": (shutil, "rmtree"),
}


def arm(folder: Path, call: str, number: int, after: bool = False, hold: bool = False) -> None:
    """Wrap the function of the moment."""
    owner, name = CALLS[call]
    original, count = getattr(owner, name), 0

    def here() -> None:
        text = f"{'after' if after else 'before'} {call} {number}"
        if not hold:
            print(f"killed {text}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        print(f"held {text}", flush=True)
        (folder / "held").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        nonlocal count
        count += 1
        if count == number and not after:
            here()
        done = original(*arguments, **keywords)
        if count == number and after:
            here()
        return done

    setattr(owner, name, wrapped)


def serve() -> None:
    """Run a worker for each line of the standard input and answer with its exit status."""
    for line in sys.stdin:
        request = json.loads(line)
        folder = Path(request["folder"])
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                log = os.open(folder / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                for name in ("error.json", "stopped.json"):
                    (folder / name).unlink(missing_ok=True)
                if request["moment"]:
                    arm(folder, **request["moment"])
                status = worker.main(folder)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                sys.stdout.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def main(folder: Path) -> int:
    """Work, with the moment that the folder names, if this is the first process."""
    moment = folder / "moment.json"
    if moment.exists() and os.environ["RANK"] == "0":
        chosen = json.loads(moment.read_text())
        moment.unlink()
        arm(folder, **chosen)
    return worker.main(folder)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    serve()
