"""How many trials can train at a time without one waiting for what another holds."""

from collections.abc import Iterable, Mapping

from mtl.config import Resources
from mtl.errors import ResourceError


def at_once(resources: Resources, nodes: Iterable[Mapping[str, float]]) -> int:
    """The number of trials that can hold all their workers at the same time.

    A trial holds nothing but its workers, and they are granted all together. All workers ask for the same, so a node
    has a whole number of places whatever the order; trials never block each other as long as all places together
    suffice. Workers with a GPU stay on one node where they fit on one, and then only whole trials of a node count.

    Args:
        resources: of one trial.
        nodes: what each node has, by Ray's names of resources, in use or not.

    Raises:
        ResourceError: not even one trial fits.
    """
    each = {"CPU": resources.cpus_per_worker, "GPU": 1 if resources.gpu else 0}
    places = [min(int(node.get(kind, 0) // needed) for kind, needed in each.items() if needed) for node in nodes]
    workers = resources.workers
    spread = sum(places) // workers
    packed = sum(place // workers for place in places)
    if spread == 0:
        asked = f"{resources.cpus_per_worker} CPUs" + (" and a GPU" if resources.gpu else "")
        raise ResourceError(
            "The cluster is too small for one trial.",
            got=f"places for {sum(places)} workers with {asked} on {len(places)} nodes",
            expected=f"{workers}, the workers of one trial",
            do="lower --resources.workers or --resources.cpus-per-worker, or add nodes",
        )
    return packed if resources.gpu and packed else spread
