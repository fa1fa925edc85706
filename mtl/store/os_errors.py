"""Operating system errors, told as ours; pyarrow's file systems raise the same classes."""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager

from mtl.errors import AccessDenied, NoSpace, NotFound, StoreError


@contextmanager
def reading(address: object) -> Generator[None]:
    """Read `address` inside.

    Raises:
        NotFound: there is no file, or a folder where the file should be.
        AccessDenied: the user may not.
        StoreError: anything else that the operating system reports.
    """
    with writing(address):
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFound(f"There is no object {address}.", got=_text(error), do="check the address") from error


@contextmanager
def writing(address: object) -> Generator[None]:
    """Write `address` inside.

    Raises:
        AccessDenied: the user may not.
        NoSpace: the disk is full.
        StoreError: anything else that the operating system reports.
    """
    try:
        yield
    except PermissionError as error:
        raise AccessDenied(
            f"Access to {address} was refused.",
            got=f"{_text(error)}, as user id {os.getuid()}",
            do="check the owner and mode of the file and of the folders above it, or the credentials in use",
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"There is no space left for {address}.",
                got=_text(error),
                do="free some space, or choose another address",
            ) from error
        raise StoreError(f"The file system failed at {address}.", got=_text(error)) from error


def _text(error: OSError) -> str:
    return (error.strerror or str(error)).splitlines()[0]
