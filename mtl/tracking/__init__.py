"""Where a run's metrics go while it trains: JSONL always, TensorBoard by default, a tracker of the user's own.

One interface (`base.Tracker`), and one promise (`group.Trackers`): no tracker ends a run.
"""

from mtl.tracking.base import Row, Tracked, Tracker, scalars
from mtl.tracking.group import Trackers, open_trackers

__all__ = ["Row", "Tracked", "Tracker", "Trackers", "open_trackers", "scalars"]
