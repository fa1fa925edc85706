"""A process reads back what it has printed."""

import subprocess
import sys
from pathlib import Path

CODE = """
import os, sys
from mtl.on_ray.output import Output
output = Output(most_bytes=64)
print("one", flush=True)
os.write(2, b":job_id:01000000\\ntwo\\n")
first = output()
os.write(1, b"x" * 100 + b"\\n")
parts = [output() for _ in range(3)]
with open(sys.argv[1], "w") as file:
    file.write("|".join([first, *parts]))
"""


def test_what_is_new_comes_once_and_in_pieces(tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        done = subprocess.run([sys.executable, "-c", CODE, str(heard)], stdout=out, stderr=err, check=False)
    assert done.returncode == 0, (tmp_path / "err").read_text()
    assert heard.read_text() == "one\ntwo\n|" + "x" * 64 + "|" + "x" * 36 + "\n|"


def test_streams_that_are_no_files_are_left_alone(tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    subprocess.run([sys.executable, "-c", CODE, str(heard)], capture_output=True, check=True)
    assert heard.read_text() == "|||"
