"""What glibc does with the memory that a CPU's tensors give back."""

import ctypes
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def reuse_memory(device: torch.device) -> None:
    """On a CPU, let the C library keep what is freed for what comes next, instead of handing it back to the system.

    Every step allocates the same maps, many of them tens of megabytes. By default each comes as fresh pages, which the
    system must clear first. This holds for the whole process, so it is for commands. Only glibc knows it.
    """
    if glibc := _glibc_of(device):
        glibc.mallopt(M_TRIM_THRESHOLD, -1)  # never give memory back
        glibc.mallopt(M_MMAP_MAX, 0)  # nor ask for a large block apart from the rest, which is given back when freed


def give_memory_back(device: torch.device) -> None:
    """On a CPU, hand the free memory that `reuse_memory` keeps back to the system; what is used again is slow once."""
    if glibc := _glibc_of(device):
        glibc.malloc_trim(0)


def _glibc_of(device: torch.device) -> ctypes.CDLL | None:
    """The C library that allocates the device's memory, if it is glibc."""
    return ctypes.CDLL(None) if device.type == "cpu" and platform.libc_ver()[0] == "glibc" else None
