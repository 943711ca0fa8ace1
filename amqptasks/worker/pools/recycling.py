"""When a child process has done enough: after so many tasks, or with so much memory."""

from __future__ import annotations

import os
import resource
from typing import Final

_STATM: Final = "/proc/self/statm"


class Recycling:
    """Counts the tasks of one child, in it, and looks at its memory after each.

    Args:
        max_tasks: Tasks after which it is to be replaced; None: any number.
        max_memory_kib: Resident memory above which it is, in KiB; None: any amount.
    """

    def __init__(self, max_tasks: int | None, max_memory_kib: int | None) -> None:
        self._max_tasks = max_tasks
        self._max_memory_kib = max_memory_kib
        self._tasks = 0

    def done(self) -> str:
        """Count a task; returns why the child is to be replaced, or nothing."""
        self._tasks += 1
        if self._max_tasks is not None and self._tasks >= self._max_tasks:
            return f"it has run {self._tasks} tasks"
        if self._max_memory_kib is not None:
            used = resident_kib()
            if used > self._max_memory_kib:
                return f"it holds {used} KiB of memory, more than {self._max_memory_kib}"
        return ""


def resident_kib() -> int:
    """The memory that this process has resident, in KiB; where the system does not tell, the most it ever had."""
    try:
        with open(_STATM, "rb", buffering=0) as statm:
            pages = int(statm.read(200).split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024
