"""What this machine can compute in, and how its memory is used."""

import ctypes
import gc
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

# Linux's control groups (cgroups(7)), by which containers, systemd and Slurm limit processes
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def resolve_precision(asked: str) -> str:
    """Return `bf16` or `fp32`: what `auto` means on this machine's GPU or CPU."""
    import torch

    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def threads_per_process(processes: int, environ: Mapping[str, str]) -> int:
    """Return how many threads each of some processes computes with: what OMP_NUM_THREADS says, else its share of the cores.

    Two threads of one process wait for each other at every step of a model. On cores that others want too, that costs ten times
    as much as it brings, so who shares a machine sets OMP_NUM_THREADS.
    """
    said = environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said) > 0:
        return int(said)
    return max(1, cores() // processes)


def cores() -> int:
    """Return how many cores this process may use: those it is bound to, and no more than a container's share pays for."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has none
    shares = [math.inf]
    for group in _groups("cpu"):
        share = _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        if share and share[0] not in ("max", "-1"):
            shares.append(int(share[0]) // int(share[1]))
    return int(max(1, min(bound, *shares)))


def available_memory() -> int:
    """Return how many bytes this process can still take: the machine's, and no more than a container's limit leaves."""
    left = [psutil.virtual_memory().available]
    for group in _groups("memory"):
        limit = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes") or ["max"]
        used = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes") or ["0"]
        if limit != ["max"]:
            left.append(int(limit[0]) - int(used[0]) + _cached(group))
    return max(0, min(left))


def _cached(group: Path) -> int:
    """Return the bytes of files that the system keeps in a group's memory until somebody needs it."""
    words = _words(group / "memory.stat")
    facts = {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    # version 1 counts the groups below under names of their own
    return sum(facts.get(f"total_{name}", facts.get(name, 0)) for name in ("inactive_file", "active_file"))


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folder of this process's control group and those around it, of either version; a limit may be set at any."""
    for line in _lines(OWN_GROUPS):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = GROUPS / controller if controllers else GROUPS
        own = top / path.lstrip("/")
        yield from (group for group in (own, *own.parents) if group.is_relative_to(top))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:  # another system, another version, or the limit of a machine as a whole, which has none
        return []


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the C library keep freed memory for the next tensor, and give it back at the end.

    Every page that comes anew from the system is cleared first: on a CPU that is a tenth of a training step. It works
    with glibc (mallopt(3)); on other systems nothing changes. It is for a process that does the same step over and over:
    tensors that grow, as in generation, would leave holes that nothing fits.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4  # malloc.h
    for setting, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28)):
        libc.mallopt(setting, value)
    try:
        yield
    finally:
        for setting, value in ((mmap_max, 2**16), (trim_threshold, 2**17), (top_pad, 2**17), (mmap_threshold, 2**17)):
            libc.mallopt(setting, value)
        libc.malloc_trim(0)


def give_back_freed_memory() -> None:
    """Return what this process no longer uses to the system, before another process needs it."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)
