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
        OSError: `path` cannot be written, which it names; or the block's own, of another file.
    """
    unique = f"{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}"  # a long name leaves no room for more
    temporary = path.with_name(f".{path.name[:40]}.{unique}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        here = error.filename is None or temporary.is_relative_to(
            str(error.filename)
        )  # a full disk names nothing
        if error.errno is None or not here:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # or the failure to tidy up would hide why the block failed
            temporary.unlink(missing_ok=True)
