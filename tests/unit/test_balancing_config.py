"""What the configuration of balancing refuses, before torch is loaded."""

from pathlib import Path
from typing import Any

import pytest

from mtl.balancing_config import Balancing
from mtl.errors import ConfigError
from mtl.preflight import check
from tests.helpers.jobs import tiny_config


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"refresh_steps": 5}, "refresh_steps=5"),
        ({"refresh_steps": 5, "backend": "boundary"}, "refresh_steps=5"),
        ({"lag": 1, "backend": "exact"}, "lag=1"),
        ({"statistic": "samples", "backend": "exact"}, "statistic=samples"),
        ({"statistic": "samples", "backend": "scalar"}, "statistic=samples"),
    ],
)
def test_options_of_another_backend_are_refused(options: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ConfigError, match="backend does not know") as caught:
        Balancing(**options)
    assert fragment in str(caught.value.got)


def test_options_of_their_own_backend_are_not() -> None:
    Balancing(method="mgda", backend="exact", refresh_steps=10)
    Balancing(method="mgda", lag=1, statistic="samples")


def test_an_unknown_method_is_refused_before_the_data_set_is_looked_at(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "none", tmp_path, balancing=Balancing(method="magic"))
    with pytest.raises(ConfigError, match="no balancing method 'magic'"):
        check(config)
