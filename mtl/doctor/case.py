"""What the checks of one job have learned so far."""

from dataclasses import dataclass

from mtl.config import Config
from mtl.data.manifest import Manifest


@dataclass
class Case:
    """A configuration, and its data set's manifest once a check has read it."""

    config: Config
    manifest: Manifest | None = None
