"""Files that appear complete or not at all."""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what is written there takes its place when the block succeeds.

    Raises:
        OSError: the block's; where it names no file, as that of a full disk, it is made to name `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = f"{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}"  # a long name leaves no room for more
    temporary = path.with_name(f".{path.name[:40]}.{unique}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # or the failure to tidy up would hide why the block failed
            temporary.unlink(missing_ok=True)
