"""Locks of the system (flock) on files: they end with their process, however that ends, and hold between containers.

Some disks know none, as Lustre without its option flock, and so does Windows: there one line asks the user to see that
no other process works on the same files, and work goes on.
"""

import errno
import os
import sys
from contextlib import suppress
from typing import IO, Any

from runtime.progress import say

LOCK = ".lock"  # name of the file that is locked in a folder which belongs to one process
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of a disk that knows none
warned: set[int] = set()  # disks of which that was said


def lock(file: IO[Any], shared: bool = False, wait: bool = False, certain: bool = False) -> bool:
    """Lock a file until it is closed, also by a killed process; tells whether no other process has it.

    Args:
        shared: any number of processes may have it so at once.
        wait: until no other has it.
        certain: on a disk without locks, where nobody can tell, return False: for what would be removed.
    """
    if sys.platform == "win32":
        return not certain
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        disk = os.fstat(file.fileno()).st_dev
        if disk not in warned:
            warned.add(disk)
            say(f"WARNING: {file.name} is on a disk without locks: see that no other process works there")
        return not certain
    return True


def is_current(file: IO[Any]) -> bool:
    """Tell whether an open file still lies under its name: whoever had the lock may have removed it at his end."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    return False
