"""Freed memory of tensors is used again, and can be returned to the kernel."""

import subprocess
import sys

import pytest

from stlm_edge.training.allocator import keep_freed_memory

MEASURE = """
import resource, torch
from pathlib import Path
from stlm_edge.training.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

counts = []
for keep in (False, True):
    keep_freed_memory(keep)
    faults()
    counts.append(faults())
kept = resident()
keep_freed_memory(False)
print(*counts, kept - resident())
"""


@pytest.mark.skipif(not keep_freed_memory(False), reason="not glibc")
def test_freed_memory_is_kept_until_returned():
    answer = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=120)
    before, kept, megabytes_back = map(int, answer.stdout.split())
    assert kept < before / 10
    assert megabytes_back > 48
