"""One at a time in a job's folder, by a lock that a killed process cannot keep."""

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from luthier.errors import UserError

logger = logging.getLogger(__name__)
PATIENCE = 120.0  # seconds that a worker whose parent died may need to notice it and leave


@contextmanager
def alone_in(folder: Path, name: str) -> Iterator[IO[str]]:
    """Keep others out who ask for the same lock file; who inherits it keeps them out as long as it lives.

    Raises:
        UserError: if another holds it for longer than `PATIENCE`.
    """
    with (folder / name).open("w") as file:
        deadline, told = time.monotonic() + PATIENCE, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(f"Another process trains in {folder}: wait for it, or end it.") from None
                if not told:
                    logger.info("Another process trains in %s: waiting for it, %.0f s at most.", folder, PATIENCE)
                told = True
                time.sleep(0.5)
        yield file
