"""What the README's first command does, with the real model: it gets measurably better on messages that it has not seen."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from commands import kedro_in, output

from luthier.machine import resolve_precision
from tests.end_to_end.test_served import TOLERANCE, agreement
from tests.serving.processes import serving
from tests.serving.versions import Home


@contextmanager
def peak_memory_of_children() -> Iterator[list[int]]:
    """Watch the processes that this one starts; the list's item is the most bytes that they ever held together.

    What several processes share is counted once (proportional set size, proc(5)).
    """
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(2.0):  # to look takes a tenth of a second of a core
            held = 0
            for process in psutil.Process(os.getpid()).children(recursive=True):
                try:
                    held += process.memory_full_info().pss
                except psutil.Error:  # it has ended
                    continue
            peak[0] = max(peak[0], held)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        stop.set()
        watcher.join()


@pytest.mark.slow
def test_the_real_model_gets_better(project):
    with peak_memory_of_children() as peak:
        # as many steps as usual, of half as many messages: without bf16 the whole takes half an hour on one core
        smaller = "training.batch_size=8,training.max_steps=60,evaluation.max_examples=100"
        done = kedro_in(project, "run", "--params", smaller, timeout=2_400)
    assert done.returncode == 0, output(done)
    (path,) = (project / "data/08_reporting/evaluation.json").glob("*/evaluation.json")
    evaluation = json.loads(path.read_text())
    print(done.stdout)
    over_base = evaluation["differences"]["tuned_minus_base"]["field_accuracy"]
    over_majority = evaluation["differences"]["tuned_minus_majority"]["field_accuracy"]
    assert over_base["value"] >= 0.30
    assert over_base["low"] > 0
    assert over_majority["value"] >= 0.10
    assert over_majority["low"] > 0
    # on this evidence the gate lets it pass, and it can go into production
    assert "The gate says: pass." in output(done)
    assert "Registered as version 1 of luthier, the candidate" in output(done)
    assert 2**30 < peak[0] < 6e9
    # and what is served then is what was evaluated
    assert kedro_in(project, "promote").returncode == 0
    # two tokens are as likely if the logits' last bit decides: of bf16 numbers as large as logits are, two such steps
    tie = 0.25 if resolve_precision("auto") == "bf16" else TOLERANCE
    with serving(Home(project, within=project), env="base", seconds=300) as server:
        asked, ties = agreement(project, server, most=16, tie=tie)
    assert ties <= 0.25 * asked
