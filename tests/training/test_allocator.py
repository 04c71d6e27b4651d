"""Freed memory of tensors is used again, and can be returned to the kernel."""

import platform
import subprocess
import sys

import pytest

MEASURE = """
import resource, torch
from pathlib import Path
from stlm_edge.training.allocator import keep_freed_memory, return_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

faults()
before = faults()
keep_freed_memory()
faults()
after = faults()
kept = resident()
return_freed_memory()
print(before, after, kept - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_freed_memory_is_kept_until_returned():
    measured = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=120)
    before, kept, megabytes_back = map(int, measured.stdout.split())
    assert kept < before / 10
    assert megabytes_back > 48
