"""Resident memory of this process, and of one that starts small below a large one."""

import os
import subprocess
import sys

import numpy as np
import psutil

from training.metrics.resident import read_resident

READ_OWN = "import os; from training.metrics.resident import read_resident; print(read_resident(os.getpid()).peak)"


def test_peak_outlives_what_was_freed():
    block = np.ones(2**25)  # 256 MiB
    held = read_resident(os.getpid())
    resident = psutil.Process().memory_info().rss
    assert held.private >= block.nbytes and held.peak >= block.nbytes
    del block
    after = read_resident(os.getpid())
    assert after.peak >= held.peak - 2**20 and after.private <= held.private - 2**27 and held.peak >= resident - 2**23


def test_peak_is_not_that_of_the_parent():
    block = np.ones(2**26)  # 512 MiB
    found = int(subprocess.run([sys.executable, "-c", READ_OWN], capture_output=True, check=True).stdout)
    assert 2**22 < found < block.nbytes
