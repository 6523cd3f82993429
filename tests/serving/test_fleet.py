"""Engines are started from what a registry holds, however slowly it comes."""

import asyncio
import time

import pytest

from luthier.errors import UserError
from luthier.serving.fleet import _unwaited


def test_who_gives_up_does_not_wait_for_a_download():
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(_unwaited(time.sleep, 5), 0.1))
    assert time.monotonic() - began < 2


def test_what_is_found_or_raised_comes_back():
    def refuse(version):
        raise UserError(f"there is no version {version}")

    assert asyncio.run(_unwaited(max, 2, 3)) == 3
    with pytest.raises(UserError, match="there is no version 7"):
        asyncio.run(_unwaited(refuse, 7))
