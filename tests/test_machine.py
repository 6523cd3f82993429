"""How much of the machine is used."""

import pytest

from luthier.machine import threads_per_process


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({}, 4),
        ({"OMP_NUM_THREADS": "0"}, 4),
        ({"OMP_NUM_THREADS": "x"}, 4),
    ],
)
def test_threads_are_what_the_environment_says_or_a_share_of_the_cores(monkeypatch, environ, expected):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert threads_per_process(2, environ) == expected
    assert threads_per_process(16, {}) == 1
