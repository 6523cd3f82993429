"""Clients' schemas, compiled: a new one is tried first in a process of its own, which may be ended.

    new schema -> schema_trial, with little time and memory -> compiled here, for all requests
                       | ended or refused
                       +-> the client's mistake; never tried again

llguidance compiles a usual schema in milliseconds, but takes all the time and memory there is for some short ones, such as twenty
patterns under `allOf`, and a thread that is at it cannot be ended.
"""

import asyncio
import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from luthier.artefacts import canonical_json, hash_of
from luthier.constrained import JsonConstraint, grammar_of
from luthier.errors import UserError
from luthier.serving.api.errors import timed_out
from luthier.serving.engines import schema_trial

KEPT = 32
"""Schemas whose grammars are kept compiled."""
REFUSED_KEPT = 10_000
"""Schemas that are known to be refused; what is kept of each is its hash and why."""
TRIAL_SECONDS = 20.0
"""How long a trial may take where it gets hardly any processor."""


class Schemas:
    """The schemas of one model. One is compiled at a time: others wait for it, and requests without a new schema do not."""

    def __init__(self, compiled: Callable[[Mapping[str, Any]], JsonConstraint]) -> None:
        """Know none yet.

        Args:
            compiled: compiles a schema that passed its trial; called on a thread of its own.
        """
        self._compiled = compiled
        self._known: OrderedDict[str, JsonConstraint] = OrderedDict()
        self._refused: OrderedDict[str, str] = OrderedDict()
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "schemas")

    async def constraint(self, schema: Mapping[str, Any]) -> JsonConstraint:
        """Return what holds answers to a schema.

        Raises:
            UserError: if it cannot be a constraint, or takes too much to compile.
            ApiError: if it did not come to its end in time.
        """
        written = canonical_json(schema)
        if (known := self._kept(written)) is not None:
            return known
        async with self._turn:
            # somebody may have asked for the same in the meantime
            return self._kept(written) or await self._new(written)

    def _kept(self, written: str) -> JsonConstraint | None:
        """Return a schema that is compiled already.

        Raises:
            UserError: if it was refused before.
        """
        if (why := self._refused.get(hash_of(written))) is not None:
            raise UserError(why)
        if written in self._known:
            self._known.move_to_end(written)
        return self._known.get(written)

    async def _new(self, written: str) -> JsonConstraint:
        schema = json.loads(written)
        try:
            await _tried(grammar_of(schema))
            constraint = await asyncio.get_running_loop().run_in_executor(self._thread, self._compiled, schema)
        except UserError as error:
            self._refused[hash_of(written)] = str(error)
            _forget(self._refused, REFUSED_KEPT)
            raise
        self._known[written] = constraint
        _forget(self._known, KEPT)
        return constraint


def _forget(kept: OrderedDict[str, Any], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)


async def _tried(grammar: str) -> None:
    """Compile a grammar in a process of its own, which ends with this.

    Raises:
        UserError: if it is wrong, or the process came to the end of its time or memory.
        ApiError: if the process got too little of the processor to say.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", schema_trial.__name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(TRIAL_SECONDS):
            said, _ = await process.communicate(grammar.encode())
    except TimeoutError:
        raise timed_out("the schema to be compiled", TRIAL_SECONDS) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise UserError(
            f"The JSON Schema cannot be a constraint: compiling it takes more than {schema_trial.CPU_SECONDS} s or "
            f"{schema_trial.MEMORY_BYTES >> 20} MB. Write it with fewer patterns, above all under allOf, and with smaller limits."
        )
    if said:
        raise UserError(f"The JSON Schema cannot be a constraint: {said.decode()}")
