"""What this machine can compute in, and how its memory is used."""

import ctypes
import gc
from collections.abc import Iterator
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
