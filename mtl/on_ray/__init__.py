"""Running on Ray. The only library code that imports ray."""

import os

# Read when ray is imported. A sweep's trials are actors that hold no CPU, which the raylet takes for too many workers.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started on node")
