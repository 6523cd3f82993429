"""How much of the machine is used: what a container's limits leave of it."""

import os
from types import SimpleNamespace

import psutil
import pytest
from tasks import name_process

from luthier import machine
from luthier.executors import Executor, Task
from luthier.machine import available_memory, cores, threads_per_process

GIB = 2**30
BOUND = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


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
    monkeypatch.setattr(machine, "cores", lambda: 8)
    assert threads_per_process(2, environ) == expected
    assert threads_per_process(16, {}) == 1


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Return a function that lays out control groups: what /proc/self/cgroup says, and files by their path."""

    def lay_out(own, files):
        for name, text in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (tmp_path / "own").write_text(own)
        monkeypatch.setattr(machine, "GROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
        monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64), raising=False)

    return lay_out


V1 = "7:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),  # a container of version 2
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/job/step/task\n", {"job/cpu.max": "300000 100000\n", "job/step/task/cpu.max": "max 100000\n"}, 3),  # Slurm
        (V1, {"cpu/cpu.cfs_quota_us": "800000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),  # a container of version 1
        (V1, {"cpu/docker/ab/cpu.cfs_quota_us": "150000\n", "cpu/docker/ab/cpu.cfs_period_us": "50000\n"}, 3),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ("0::/gone\n", {}, 64),
    ],
)
def test_a_container_has_the_cores_that_its_quota_pays_for(groups, own, files, expected):
    groups(own, files)
    assert cores() == expected
    assert threads_per_process(1, {}) == expected


STAT_1 = f"cache 5\ninactive_file 1\ntotal_inactive_file {GIB}\ntotal_active_file 0\n"


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/\n", {"memory.max": str(4 * GIB), "memory.current": str(3 * GIB)}, GIB),
        (
            "0::/\n",  # what is kept of files counts as free
            {
                "memory.max": str(4 * GIB),
                "memory.current": str(4 * GIB),
                "memory.stat": f"anon 7\ninactive_file {GIB}\nactive_file {GIB}\n",
            },
            2 * GIB,
        ),
        ("0::/a/b\n", {"a/memory.max": str(GIB), "a/memory.current": "0", "a/b/memory.max": "max\n"}, GIB),
        (V1, {"memory/memory.limit_in_bytes": str(4 * GIB), "memory/memory.usage_in_bytes": str(3 * GIB)}, GIB),
        (
            V1,
            {
                "memory/docker/ab/memory.limit_in_bytes": str(4 * GIB),
                "memory/docker/ab/memory.usage_in_bytes": str(4 * GIB),
                "memory/docker/ab/memory.stat": STAT_1,
            },
            GIB,
        ),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "1"}, 64 * GIB),
        (V1, {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "1"}, 64 * GIB),
        ("0::/\n", {"memory.max": "1", "memory.current": "2"}, 0),
    ],
)
def test_a_container_has_the_memory_that_its_limit_leaves(groups, monkeypatch, own, files, left):
    groups(own, files)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))
    assert available_memory() == left


def test_where_there_are_no_control_groups_the_machine_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "absent")
    assert cores() == BOUND
    assert 0 < available_memory() <= psutil.virtual_memory().total
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert cores() == os.cpu_count()


def test_the_work_is_not_spread_over_more_processes_than_the_container_has_cores(groups, tmp_path):
    groups("0::/\n", {"cpu.max": "100000 100000\n"})
    outs = Executor(tmp_path / "work").map("step", name_process, [Task({"n": n}) for n in range(3)])
    assert {(out / "pid").read_text() for out in outs} == {str(os.getpid())}
