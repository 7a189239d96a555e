"""What glibc does with the memory that a CPU's tensors give back."""

import ctypes
import platform

from yoloyard.common.device import Precision

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def reuse_memory(precision: Precision) -> None:
    """Let the C library keep what is freed for what comes next, instead of handing it back to the system.

    Every step allocates the same maps, many of them tens of megabytes. By default each comes as fresh pages, which the
    system must clear first. This holds for the whole process, so it is for commands. Only glibc knows it.
    """
    if precision.has_cpu_paths and (library := glibc()):
        library.mallopt(M_TRIM_THRESHOLD, -1)  # never give memory back
        library.mallopt(M_MMAP_MAX, 0)  # nor ask for a large block apart from the rest, which is given back when freed


def give_memory_back(precision: Precision) -> None:
    """Hand the free memory that `reuse_memory` keeps back to the system; what is used again is slow once."""
    if precision.has_cpu_paths and (library := glibc()):
        library.malloc_trim(0)


def glibc() -> ctypes.CDLL | None:
    """The C library of this process, if it is glibc."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
