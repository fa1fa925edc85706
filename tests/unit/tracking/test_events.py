"""Event files as the packages of TensorBoard's own format read them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.tracking import events
from tests.helpers.trackers import event_pb2, read_events


def test_a_file_begins_with_its_version() -> None:
    (event,) = read_events(events.header())
    assert event.file_version == "brain.Event:2"


@settings(max_examples=20)
@given(
    wall=st.floats(0, 1e10),
    step=st.integers(0, 2**62),
    values=st.dictionaries(st.text(max_size=20), st.floats(), max_size=8),
)
def test_scalars_are_read_back(wall: float, step: int, values: dict[str, float]) -> None:
    (event,) = read_events(events.summary(wall, step, values))
    assert (event.wall_time, event.step) == (wall, step)
    got = {value.tag: value.simple_value for value in event.summary.value}
    assert got.keys() == values.keys()
    with np.errstate(over="ignore"):
        for name, value in values.items():
            np.testing.assert_equal(np.float32(got[name]), np.float32(value))


def test_a_restart_forgets_later_steps() -> None:
    (event,) = read_events(events.restart(1.5, 300))
    assert (event.step, event.session_log.status) == (300, event_pb2.SessionLog.START)


def test_long_names_need_a_length_of_two_bytes() -> None:
    (event,) = read_events(events.summary(0.0, 1, {"n" * 300: 1.0}))
    assert event.summary.value[0].tag == "n" * 300
