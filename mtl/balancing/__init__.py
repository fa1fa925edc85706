"""How the losses of K tasks become one: a balancer maps replicated statistics of the tasks to one weight for each.

Balancers never communicate and never see the model: whoever fills `TaskStats` reduces first, so the weights are equal
on every rank by construction. One method a file; `METHODS` is the registry.
"""

from mtl.balancing.base import Balancer, TaskStats
from mtl.balancing.static import Static

METHODS: dict[str, type[Balancer]] = {"static": Static}

__all__ = ["METHODS", "Balancer", "Static", "TaskStats"]
