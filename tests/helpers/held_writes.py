"""A process in the middle of `put_file`, for as long as a test likes: to be killed there, or to go on."""

import multiprocessing
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from mtl.store import Store
from mtl.store.s3 import S3Store

CONTENT = uuid.uuid5(uuid.NAMESPACE_OID, "content").bytes * (9 << 16)
"""Nine megabytes: two parts on S3, of which one is there while the writer is held."""


@contextmanager
def held(store: Store, key: str, folder: Path) -> Iterator[BaseProcess]:
    """A process that puts `CONTENT`, and has written some of it; it goes on once `folder`/go exists."""
    (folder / "source").write_bytes(CONTENT)
    writer = multiprocessing.get_context("spawn").Process(target=_put, args=(store, key, folder), daemon=True)
    writer.start()
    try:
        while not any(write.size_bytes for write in store.unfinished()):
            assert writer.is_alive()
            time.sleep(0.01)
        yield writer
    finally:
        writer.kill()
        writer.join()


def _put(store: Store, key: str, folder: Path) -> None:
    def wait() -> None:
        while not (folder / "go").exists():
            time.sleep(0.01)

    if isinstance(store, S3Store):

        def before_part(params: dict[str, Any], **_: Any) -> None:
            if params["PartNumber"] > 1:
                wait()

        events = store._process.get().connection.client.meta.events
        events.register("before-parameter-build.s3.UploadPart", before_part)
    else:
        sync = os.fsync

        def sync_later(file: int) -> None:
            if stat.S_ISREG(os.fstat(file).st_mode):  # and not a new folder
                wait()
            sync(file)

        os.fsync = sync_later
    store.put_file(key, folder / "source")
