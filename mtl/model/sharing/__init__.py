"""How tasks share a network: one pattern a file, `PATTERNS` is the registry.

base.py          what every pattern is; the boundary between shared and task parameters
hard.py          one backbone, a head for each task
split.py         the later stages of the backbone once for each task
mmoe.py          shared experts, a gate for each task
cgc.py  ple.py   shared and own experts, in one level and in several
mtan.py          each task masks the shared feature maps
cross_stitch.py  a backbone for each task, mixed after every stage
"""

from collections.abc import Callable, Mapping

from mtl.model.sharing.base import Boundary, BoundaryModel, MultiTaskModel, Shared
from mtl.model.sharing.cgc import CGC
from mtl.model.sharing.cross_stitch import CrossStitch
from mtl.model.sharing.hard import HardSharing
from mtl.model.sharing.mmoe import MMoE
from mtl.model.sharing.mtan import MTAN
from mtl.model.sharing.ple import PLE
from mtl.model.sharing.split import SplitSharing

PATTERNS: Mapping[str, Callable[..., MultiTaskModel]] = {
    "hard": HardSharing,
    "split": SplitSharing,
    "mmoe": MMoE,
    "cgc": CGC,
    "ple": PLE,
    "mtan": MTAN,
    "cross-stitch": CrossStitch,
}
"""By name in the configuration; called with a Backbone, a HeadSpec and the pattern's own arguments by name."""

__all__ = [
    "CGC",
    "MTAN",
    "PATTERNS",
    "PLE",
    "Boundary",
    "BoundaryModel",
    "CrossStitch",
    "HardSharing",
    "MMoE",
    "MultiTaskModel",
    "Shared",
    "SplitSharing",
]
