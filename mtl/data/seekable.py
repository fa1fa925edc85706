"""Read-only files wherever their bytes come from: the part that is the same, and a file that is an object."""

import io
from typing import final

from mtl.store import Store


class Seekable(io.RawIOBase):
    """A file of `size` bytes; whoever derives from it reads at `at`, and moves it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at


@final
class Ranged(Seekable):
    """An object of which only what is asked for is fetched."""

    def __init__(self, store: Store, key: str, size: int) -> None:
        super().__init__(size)
        self._store, self._key = store, key

    def read(self, size: int = -1) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        wanted = min(size if size >= 0 else self.size, self.size - self.at)
        if wanted <= 0:
            return b""
        data = self._store.get_range(self._key, self.at, wanted)
        self.at += wanted
        return bytes(data)
