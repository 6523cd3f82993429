"""Engines are started from what a registry holds, however slowly it comes."""

import asyncio
import time

import pytest

from luthier.errors import UserError
from luthier.serving.engines.upstream import Upstream
from luthier.serving.fleet import Fleet, Machine, _unwaited
from luthier.serving.live import Served
from luthier.serving.parameters import ServingParameters
from luthier.text.prepare import PromptSettings


class Slow(Fleet):
    """Whose engines take a while to start, and, where that is cancelled, to end."""

    async def _start(self, number):
        try:
            await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            await asyncio.sleep(0.2)
            raise
        return Served(Upstream(["http://127.0.0.1:9/v1"], "theirs"), PromptSettings(), 100)


def test_who_gives_up_does_not_wait_for_a_download():
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(_unwaited(time.sleep, 5), 0.1))
    assert time.monotonic() - began < 2


def test_a_version_that_is_wanted_again_while_its_start_ends_is_started_afresh(tmp_path):
    async def scenario():
        fleet = Slow(None, ServingParameters(), Machine(tmp_path, "fp32", base=lambda: None))
        first = asyncio.create_task(fleet.serve(3))
        await asyncio.sleep(0.1)
        fleet.retire(())
        again = await asyncio.gather(fleet.serve(3), fleet.serve(3))
        assert first.cancelled()
        assert again[0] is again[1]
        assert fleet.running() == {3: again[0]}
        await fleet.close()

    asyncio.run(scenario())


def test_what_is_found_or_raised_comes_back():
    def refuse(version):
        raise UserError(f"there is no version {version}")

    assert asyncio.run(_unwaited(max, 2, 3)) == 3
    with pytest.raises(UserError, match="there is no version 7"):
        asyncio.run(_unwaited(refuse, 7))
