"""What this process writes to its standard streams, read back from the files that Ray makes of them."""

import os
import stat
from typing import final

_MOST_BYTES = 1 << 16
_MARKS = (":job_id:", ":actor_name:", ":task_name:")  # Ray's own, for its log monitor


@final
class Output:
    """Asked, what is new since the last time: at most `most_bytes` of each stream, nothing where it is no file."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most = most_bytes
        # By number, not by sys.stdout: native libraries write there too.
        self._read = {fd: 0 for fd in (1, 2) if stat.S_ISREG(os.fstat(fd).st_mode)}

    def __call__(self) -> str:
        """What is new."""
        found: list[str] = []
        for fd, start in self._read.items():
            with open(f"/proc/self/fd/{fd}", "rb") as file:
                file.seek(start)
                data = file.read(self._most)
            self._read[fd] = start + len(data)
            lines = data.decode(errors="replace").splitlines(keepends=True)
            found += [line for line in lines if not line.startswith(_MARKS)]
        return "".join(found)
