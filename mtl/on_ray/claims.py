"""What a run claims of a cluster, and the end of that with its controller.

A controller that is killed while it waits for workers leaves behind what would keep others from their nodes: its claim,
which makes the autoscaler bring nodes for three minutes more, and a placement group, which lives as long as its job.
"""

from contextlib import suppress
from typing import Any

import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # pyright: ignore - generated
from ray.util.placement_group import PlacementGroup, remove_placement_group

COORDINATOR = "AutoscalingCoordinator"
"""Ray's actor, by name and namespace, that shares the nodes out among runs."""


def end(controller: Any, claim: str) -> None:
    """Kill a controller, and give back what it claims.

    Args:
        controller: its handle.
        claim: the name under which it asks for nodes.
    """
    ray.kill(controller)
    with suppress(ValueError):  # nobody has asked for any
        ray.get_actor(COORDINATOR, namespace=COORDINATOR).cancel_request.remote(claim)
    for entry in state._connect_and_get_accessor().get_placement_group_table():  # pyright: ignore
        group = PlacementGroupTableData.FromString(entry)
        if group.creator_actor_id == controller._actor_id.binary() and group.state != group.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
