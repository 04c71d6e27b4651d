"""Memory that tensors leave is used again, and can be given back."""

import subprocess
import sys

import pytest

from stlm_edge.allocation import keep_freed_memory

FAULTS = """
import resource, sys, torch
from stlm_edge.allocation import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

counts = []
for keep in (False, True, False):
    keep_freed_memory(keep)
    faults()
    counts.append(faults())
print(*counts)
"""


@pytest.mark.skipif(not keep_freed_memory(False), reason="not glibc")
def test_kept_memory_is_not_fetched_again():
    answer = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=120)
    before, kept, after = map(int, answer.stdout.split())
    assert kept < before / 10
    assert after > before / 2
