"""Local files that are whole or not there, for the data sets of kedro-datasets, which write them in place.

A storage such as S3 shows an object when all of it has come. A file shows what has been written so far: killed in the midst, a
run would leave a version that is the newest, and broken.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from luthier.artefacts import flush_to_disk


class WholeFiles(LocalFileSystem):
    """The local file system of fsspec, but a new file gets its name when it is closed."""

    def open(self, path: str, mode: str = "rb", **how: Any) -> Any:
        """Open a file; a new one is invisible until its end, and gone if that does not come."""
        final = Path(self._strip_protocol(path))
        # what is there already, a link or a device, is written as ever: a version is new
        if not mode.startswith("w") or how.get("compression") or os.path.lexists(final):
            return super().open(path, mode, **how)
        if self.auto_mkdir:
            final.parent.mkdir(parents=True, exist_ok=True)
        text: dict[str, Any] = {name: how[name] for name in ("encoding", "errors", "newline") if name in how}
        return _Staged(final, mode, text)


class _Staged:
    """A file under a name that no reader knows."""

    def __init__(self, final: Path, mode: str, text: dict[str, Any]) -> None:
        self._final, self._staging = final, final.with_name(f".staging-{final.name}-{uuid.uuid4().hex[:8]}")
        self._file = self._staging.open(mode, **text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        return int(self._file.write(data))  # not by __getattr__: who holds its method alone would lose the file

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __enter__(self) -> "_Staged":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is not None:
            self._staging.unlink(missing_ok=True)
            return
        flush_to_disk(self._staging)
        self._staging.replace(self._final)
        flush_to_disk(self._final.parent)

    def __del__(self) -> None:
        self.close()  # as any file whose owner is gone

    def close(self) -> None:
        if not self._file.closed:
            self.__exit__(None, None, None)


def write_whole_files() -> None:
    """Let fsspec, and so every data set, write local files so from now on."""
    fsspec.register_implementation(WholeFiles.protocol[0], WholeFiles, clobber=True)
