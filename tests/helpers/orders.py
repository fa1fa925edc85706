"""Small orders, drawn at random, and their rows as pairs."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from mtl.data.order import Order, Rows


@dataclass(frozen=True)
class Case:
    """Arguments of an order."""

    rows: tuple[int, ...] = (3, 1, 4, 2, 5)
    fingerprint: str = "f"
    split: str = "train"
    seed: int = 7
    lanes: int = 2
    block_row_groups: int | None = 2
    global_batch: int = 4
    keep_tail: bool = True
    shuffle: bool = True

    def order(self) -> Order:
        return Order(
            np.array(self.rows, np.int64),
            fingerprint=self.fingerprint,
            split=self.split,
            seed=self.seed,
            lanes=self.lanes,
            block_row_groups=self.block_row_groups,
            global_batch=self.global_batch,
            keep_tail=self.keep_tail,
            shuffle=self.shuffle,
        )


def cases() -> st.SearchStrategy[Case]:
    def build(lanes: int, per_lane: int, **others: object) -> Case:
        return Case(lanes=lanes, global_batch=lanes * per_lane, **others)  # type: ignore[arg-type]

    return st.builds(
        build,
        lanes=st.integers(1, 7),
        per_lane=st.integers(1, 4),
        rows=st.lists(st.integers(0, 9), max_size=14).map(tuple),
        block_row_groups=st.none() | st.integers(1, 5),
        seed=st.integers(0, 2**63),
        keep_tail=st.booleans(),
        shuffle=st.booleans(),
    )


def pairs(rows: Rows) -> list[tuple[int, int]]:
    return list(zip(rows.group.tolist(), rows.row.tolist(), strict=True))


def everything(case: Case) -> list[tuple[int, int]]:
    """Every row, in storage order."""
    return [(group, row) for group, n in enumerate(case.rows) for row in range(n)]
