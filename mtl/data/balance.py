"""Who waits for whom: the balance of lanes over workers, known before the start."""

import math
from collections.abc import Sequence

_NAMED = 8  # numbers of workers that a line names at most


def balance(lanes: int, world_size: int) -> float:
    """L / (W ceil(L / W)): the share of full speed when all wait for the workers with most lanes."""
    return lanes / (world_size * -(-lanes // world_size))


def balances(lanes: int, world_size: int, allowed: Sequence[int]) -> str:
    """For people: the balance on `world_size` workers, and on the `allowed` numbers of them."""
    even = [n for n in allowed if balance(lanes, n) == 1]
    near = sorted(sorted(even, key=lambda n: abs(math.log(n / world_size)))[:_NAMED])
    worst = min(allowed, key=lambda n: balance(lanes, n))
    told = f"balance {balance(lanes, world_size):.0%} with {world_size}, 100% with {', '.join(map(str, near))}"
    return told + (f", at worst {balance(lanes, worst):.0%} with {worst}" if worst not in even else "")
