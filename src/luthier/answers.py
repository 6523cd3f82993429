"""Answers of models, generated once: kept under a key of what answers and what was asked, and read from there ever after.

A list of conversations is cut into chunks in the order given. A chunk is answered whole and stored whole, under the hash of the
answerer's identity and of its conversations. So the answers are the same bytes whatever was stored before, a kill loses the chunk
in work and no other, and two runs at once do the same work twice at worst.
"""

import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import main_thread
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from luthier.artefacts import hash_of, is_complete, mark_used, staged, verify
from luthier.configuration import FolderParameters
from luthier.errors import UserError
from luthier.shards import write_table

if TYPE_CHECKING:
    from luthier.generation import Answer
    from luthier.text.prepare import Message

logger = logging.getLogger(__name__)
FORMAT = 3
"""Part of every key. A change of this code that changes answers, or how they are kept, raises it."""
SECONDS_BETWEEN_LINES = 15.0
Progress = Callable[[int], None]

_ANSWERS = pa.schema(
    [
        ("text", pa.string()),
        ("tokens", pa.int64()),
        ("finish", pa.string()),
        ("log_probability", pa.float64()),
        ("error", pa.string()),  # of a refusal, which has nothing else
    ]
)
# in a file of its own: how long it took is never the same twice
_SECONDS = pa.schema([("seconds", pa.float64())])


@dataclass(frozen=True)
class Refusal:
    """Why a conversation has no answer, and will have none however often this model is asked."""

    error: str


class Answerer(Protocol):
    """A model that answers conversations."""

    @property
    def name(self) -> str:
        """What to call it."""

    @property
    def identity(self) -> str:
        """All that decides its answers: equal identities, equal answers to equal conversations. Never a secret."""

    def facts(self) -> dict[str, Any]:
        """Return what else is worth keeping beside the answers: versions, what a server says that it is."""

    def check(self) -> None:
        """Find out, at little cost, whether it can answer.

        Raises:
            UserError: if it cannot.
        """

    def answer(self, conversations: Sequence[Sequence["Message"]], progress: Progress) -> "Sequence[Answer | Refusal]":
        """Answer conversations, each the turns before the answer, in their order; tell how many answers came in.

        Raises:
            UserError: if it cannot answer at all, now or ever. A conversation that it cannot answer is a refusal.
        """


@dataclass
class LocalAnswerer:
    """A model on this machine. It is loaded when there is something to answer, and not before."""

    name: str
    identity: str
    """As of `Answerer`; `identity_of` makes it."""
    load: Callable[[], tuple[Any, Any]]
    """Returns the model and its tokenizer."""
    max_new_tokens: int
    """Where an answer is cut."""
    batch_tokens: int
    """Prompt and answer tokens of one batch at most."""
    schema: Mapping[str, Any] | None = None
    """JSON Schema that answers are held to; part of the identity."""
    _loaded: tuple[Any, Any] | None = field(default=None, init=False, repr=False)

    def facts(self) -> dict[str, Any]:
        """Return the versions of what computes."""
        import torch
        import transformers

        return {"torch": torch.__version__, "transformers": transformers.__version__}

    def check(self) -> None:
        """Do nothing: whatever makes up the identity was found."""

    def answer(self, conversations: Sequence[Sequence["Message"]], progress: Progress) -> "list[Answer | Refusal]":
        """Answer each conversation greedily; one that does not fit the model or its template is refused.

        Raises:
            UserError: if the model cannot be loaded.
        """
        from luthier.generation import generate

        model, tokenizer = self.model()
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        prompts = [_prompt(tokenizer, turns, self.max_new_tokens, context) for turns in conversations]
        good = [number for number, prompt in enumerate(prompts) if not isinstance(prompt, Refusal)]
        progress(len(prompts) - len(good))
        answers: Iterator[Answer] = iter(())
        if good:
            asked = [prompt for prompt in prompts if not isinstance(prompt, Refusal)]
            answers = iter(generate(model, tokenizer, asked, self.max_new_tokens, self.batch_tokens, progress, self._constraint))
        return [prompt if isinstance(prompt, Refusal) else next(answers) for prompt in prompts]

    @cached_property
    def _constraint(self) -> Any:
        if self.schema is None:
            return None
        from luthier.constrained import JsonConstraint

        return JsonConstraint(self.model()[1], self.schema)

    def model(self) -> tuple[Any, Any]:
        """Return the model, on its device, and its tokenizer; loaded the first time.

        Raises:
            UserError: if it cannot be loaded.
        """
        if self._loaded is None:
            model, tokenizer = self.load()
            self._loaded = model.eval().to(device_kind()), tokenizer
        return self._loaded


def device_kind() -> str:
    """Return where models answer: `cuda` or `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def identity_of(weights: str, **settings: Any) -> str:
    """Return the identity of a model on this machine.

    Args:
        weights: exactly which bytes: a base's identity, an adapter's or a package's hash.
        settings: all else that decides answers, JSON values: precision, lengths, and `batch_tokens`, for in low precision a
            prompt's neighbours in its batch decide near ties.
    """
    told = " ".join(f"{name}={value}" for name, value in sorted(settings.items()))
    return f"{weights} {told} device={device_kind()}"


def _prompt(tokenizer: Any, turns: Sequence["Message"], max_new_tokens: int, context: int | None) -> "list[int] | Refusal":
    from jinja2 import TemplateError

    from luthier.text.chat import encode_prompt

    try:
        prompt = encode_prompt(tokenizer, turns)
    except (TemplateError, UserError) as error:  # templates refuse orders of turns that they do not know
        return Refusal(f"the chat template refuses it: {error}")
    if context is not None and len(prompt) + max_new_tokens > context:
        return Refusal(
            f"the prompt has {len(prompt):,} tokens; with {max_new_tokens} to answer that is more than the model's {context:,}"
        )
    return prompt


@dataclass(frozen=True)
class Chunk:
    """The replies to some conversations."""

    replies: "list[Answer | Refusal]"
    kept: bool
    """Whether they had been stored before."""


@dataclass(frozen=True)
class AnswerStore:
    """Answers on disk, a folder a chunk. Whoever deletes it loses nothing that cannot be generated again."""

    folder: Path
    rows_per_chunk: int = 256
    """Conversations of one chunk: what a kill can lose."""

    @classmethod
    def of(cls, folders: FolderParameters, rows_per_chunk: int = 256) -> "AnswerStore":
        """Return the project's own."""
        return cls(folders.answers, rows_per_chunk)

    def answer(self, answerer: Answerer, conversations: Sequence[Sequence["Message"]]) -> "list[Answer]":
        """Return the answers to conversations, each the turns before the answer: from the store, or asked for and stored.

        What the model refuses has an empty answer, which is told in the log.

        Raises:
            UserError: as `Answerer.answer`; chunks that were finished by then are kept.
        """
        from luthier.generation import Answer

        self.check(answerer, conversations)
        replies: list[Answer | Refusal] = []
        kept = 0
        with progress_bar(f"{answerer.name} answers", len(conversations)) as progress:
            for part in self._cut(conversations):
                chunk = self.chunk(answerer, part, progress)
                replies += chunk.replies
                kept += len(part) if chunk.kept else 0
        logger.info("%s: %s answers, %s of them kept from before.", answerer.name, f"{len(replies):,}", f"{kept:,}")
        refused = Counter(reply.error for reply in replies if isinstance(reply, Refusal))
        if refused:
            told = "; ".join(f"{count} x {error}" for error, count in refused.most_common(3))
            logger.warning(
                "%s: %d conversations were refused and count as answered with nothing: %s", answerer.name, refused.total(), told
            )
        return [Answer("", 0, "stop", math.nan, 0.0) if isinstance(reply, Refusal) else reply for reply in replies]

    def check(self, answerer: Answerer, conversations: Sequence[Sequence["Message"]]) -> None:
        """Find out whether the answerer can answer, if there is something that it must.

        Raises:
            UserError: if it cannot. Before expensive work of others, this is cheap.
        """
        if any(not is_complete(self._place(answerer, _plain(part))) for part in self._cut(conversations)):
            answerer.check()

    def chunk(self, answerer: Answerer, conversations: Sequence[Sequence["Message"]], progress: Progress) -> Chunk:
        """Return the replies to the conversations of one chunk.

        Raises:
            UserError: as `Answerer.answer`.
        """
        asked = _plain(conversations)
        place = self._place(answerer, asked)
        if _is_sound(place):
            progress(len(asked))
            return Chunk(_read(place), True)
        replies = list(answerer.answer(asked, progress))
        _store(place, answerer, len(replies), lambda staging: _write(staging, replies))
        return Chunk(_read(place), False)  # not what was said here: another run may have been faster

    def measured(self, answerer: Answerer, what: Any, measure: Callable[[], Sequence[Sequence[float]]]) -> list[list[float]]:
        """Return what a model was measured to be: from the store, or by `measure`, whose rows of numbers are stored.

        Args:
            answerer: the model.
            what: all else that decides the numbers, as JSON.
            measure: called if they are not stored.
        """
        key = hash_of([FORMAT, answerer.identity, "measured", what])
        place = self.folder / key[:2] / key[:32]
        if not _is_sound(place):
            rows = [[float(value) for value in row] for row in measure()]
            table = pa.table({"values": pa.array(rows, pa.list_(pa.float64()))})
            _store(place, answerer, len(rows), lambda staging: write_table(table, staging / "values.parquet"))
        found: list[list[float]] = pq.read_table(place / "values.parquet").column("values").to_pylist()
        return found

    def _cut(self, conversations: Sequence[Sequence["Message"]]) -> Iterator[Sequence[Sequence["Message"]]]:
        for start in range(0, len(conversations), self.rows_per_chunk):
            yield conversations[start : start + self.rows_per_chunk]

    def _place(self, answerer: Answerer, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> Path:
        key = hash_of([FORMAT, answerer.identity, conversations])
        return self.folder / key[:2] / key[:32]


def _plain(conversations: Sequence[Sequence["Message"]]) -> "list[list[Message]]":
    """Return turns without what is null: tables give every turn every field."""
    return [[{name: value for name, value in turn.items() if value is not None} for turn in turns] for turns in conversations]  # type: ignore[misc]


def _write(folder: Path, replies: "Sequence[Answer | Refusal]") -> None:
    rows = [
        {"error": reply.error}
        if isinstance(reply, Refusal)
        else {
            "text": reply.text,
            "tokens": reply.tokens,
            "finish": reply.finish,
            "log_probability": reply.log_probability,
        }
        for reply in replies
    ]
    seconds = [{"seconds": None if isinstance(reply, Refusal) else reply.seconds} for reply in replies]
    write_table(pa.Table.from_pylist(rows, _ANSWERS), folder / "answers.parquet")
    write_table(pa.Table.from_pylist(seconds, _SECONDS), folder / "seconds.parquet")


def _is_sound(folder: Path) -> bool:
    """Tell whether a folder was finished and is what it was; what was damaged since is removed."""
    if not is_complete(folder):
        return False
    try:
        verify(folder)
    except UserError as error:
        logger.warning("Asking again for what was damaged: %s", error)
        shutil.rmtree(folder, ignore_errors=True)
        return False
    mark_used(folder)
    return True


def _store(place: Path, answerer: Answerer, rows: int, write: Callable[[Path], None]) -> None:
    """Write a folder; if another run was faster, what it stored is what counts."""
    try:
        with staged(place, identity=answerer.identity, format=FORMAT, rows=rows, **answerer.facts()) as staging:
            write(staging)
    except OSError:
        if not _is_sound(place):
            raise


def _read(folder: Path) -> "list[Answer | Refusal]":
    from luthier.generation import Answer

    rows = pq.read_table(folder / "answers.parquet").to_pylist()
    seconds = pq.read_table(folder / "seconds.parquet").column("seconds").to_pylist()
    return [
        Answer(**row, seconds=took) if error is None else Refusal(error)
        for row, took in zip(rows, seconds, strict=True)
        for error in (row.pop("error"),)
    ]


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Progress]:
    """Show how many answers came in: a bar on a terminal, a line now and then in a log."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    done, began = 0, time.monotonic()
    told = began
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)

        def progress(count: int) -> None:
            nonlocal done, told
            if not main_thread().is_alive():  # Ctrl-C: Kedro runs nodes in a thread, which nobody tells
                raise KeyboardInterrupt
            done += count
            bar.advance(task, count)
            now = time.monotonic()
            if not console.is_terminal and now - told > SECONDS_BETWEEN_LINES:
                told = now
                of = f" of {total:,}" if total else ""
                logger.info("%s: %s%s after %d s", title, f"{done:,}", of, now - began)

        yield progress
