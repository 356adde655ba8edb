"""What the C library does with freed memory; in processes of their own, since it is told once."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

HELD = """
import torch
from natprec.utils import memory
{first}
for size in (3, 30):
    torch.ones(size << 18)  # glibc learns from each block that is freed: 3 MB, 30 MB
before, blocks, between = memory.resident_bytes(), [], []
for _ in range(20):
    blocks.append(torch.ones(8 << 18))
    between.append(torch.ones(1 << 10))
blocks.clear()
print(memory.resident_bytes() - before)
"""


def held(first: str) -> int:
    """Bytes still resident after 20 blocks of 8 MB, with small ones between them, have been freed."""
    done = subprocess.run([sys.executable, "-c", HELD.format(first=first)], check=True, capture_output=True, text=True)
    return int(done.stdout)


def test_freed_blocks_go_back_at_once_where_weights_are_on_disk() -> None:
    """By itself glibc holds 33 or 160 MB of these, as it happens."""
    assert held("memory.release_freed()") < 20 << 20


def test_freed_blocks_are_kept_for_the_next_where_all_is_in_memory() -> None:
    assert held("memory.keep_freed()") > 100 << 20
