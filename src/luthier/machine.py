"""What this machine can compute in, and how its memory is used."""

import ctypes
import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


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
    return max(1, (os.cpu_count() or 1) // processes)


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
