"""How much memory a process has held at most."""

import re
import resource
import sys
from pathlib import Path


def peak_rss() -> float:
    """Of this process, in MB. VmHWM starts afresh at exec; ru_maxrss (elsewhere) would carry the parent's along."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text()).group(1)) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
