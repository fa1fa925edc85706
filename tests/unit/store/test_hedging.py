"""When a second request may be made."""

from mtl.store.hedging import Hedging


def test_nothing_is_hedged_before_waits_are_known() -> None:
    hedging = Hedging(0.05)
    for _ in range(31):
        hedging.observe(0.1)
        assert hedging.delay_s is None
    hedging.observe(0.1)
    assert hedging.delay_s == 0.2


def test_the_delay_follows_the_95th_percentile() -> None:
    hedging = Hedging(0.05)
    for number in range(1000):
        hedging.observe(2.0 if number % 100 == 0 else 0.1)
    assert hedging.delay_s == 0.2
    for _ in range(200):
        hedging.observe(1.0)
    assert hedging.delay_s == 2.0
    for _ in range(200):
        hedging.observe(0.001)
    assert hedging.delay_s == 0.05


def test_hedges_are_a_share_of_requests() -> None:
    hedging = Hedging(0.05)
    hedged = 0
    for _ in range(1000):
        hedging.observe(0.1)
        hedged += hedging.spend()
    assert 48 <= hedged <= 50
    for _ in range(1000):
        hedging.observe(0.1)
    assert sum(hedging.spend() for _ in range(100)) == 4


def test_a_share_of_nothing_turns_it_off() -> None:
    hedging = Hedging(0)
    for _ in range(100):
        hedging.observe(0.1)
    assert not hedging.spend()
