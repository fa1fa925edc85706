"""What is asked of a cluster before workers start, on clusters that are made up."""

from typing import Any

import pytest

from mtl.config import Config, Resources
from mtl.errors import ConfigError, ResourceError
from mtl.on_ray import cluster
from mtl.recipes import get


def _node(gpu: str | None, cpus: int = 8, *, alive: bool = True) -> dict[str, Any]:
    found = {"ray.io/accelerator-type": gpu} if gpu else {}
    return {"Alive": alive, "Labels": found, "Resources": {"CPU": cpus, **({"GPU": 4} if gpu else {})}}


def _asking(**resources: Any) -> Config:
    asked = Resources(cpus_per_worker=1, **resources)
    return get("imagenet-resnet50").model_copy(update={"resources": asked})


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(*nodes: dict[str, Any], autoscaling: bool = False) -> None:
        monkeypatch.setattr("ray.nodes", lambda: list(nodes))
        monkeypatch.setattr(cluster, "is_autoscaler_v2", lambda **_: autoscaling)

    return make


def test_a_cluster_with_room_will_do(made_up: Any) -> None:
    made_up(_node("L4"), _node("A10G"))
    cluster._check(_asking(workers=8, gpu=True))
    cluster._check(_asking(workers=4, gpu=True, accelerator="L4"))


def test_only_nodes_of_the_accelerator_count(made_up: Any) -> None:
    made_up(_node("L4"), _node("A10G"), _node("L4", alive=False), _node(None, 64))
    with pytest.raises(ResourceError) as caught:
        cluster._check(_asking(workers=8, gpu=True, accelerator="L4"))
    assert caught.value.got == "4 GPUs on nodes with L4"
    assert caught.value.expected == "8 GPUs for 8 workers"


def test_an_elastic_run_needs_room_for_its_fewest_workers(made_up: Any) -> None:
    made_up(_node("L4"))
    cluster._check(_asking(workers=8, min_workers=4, gpu=True))
    with pytest.raises(ResourceError) as caught:
        cluster._check(_asking(workers=8, min_workers=5, gpu=True))
    assert caught.value.expected == "5 GPUs for 5 workers"


def test_a_cluster_that_grows_may_be_empty_now(made_up: Any) -> None:
    made_up(_node(None, 0), autoscaling=True)
    cluster._check(_asking(workers=8, gpu=True, accelerator="A100"))
    made_up(_node(None, 0))
    with pytest.raises(ResourceError, match="too small"):
        cluster._check(_asking(workers=8, gpu=True, accelerator="A100"))


def test_an_accelerator_needs_gpus() -> None:
    config = get("imagenet-resnet50").model_dump()
    config["resources"] |= {"gpu": False, "accelerator": "L4"}
    with pytest.raises(ConfigError) as caught:
        Config.model_validate(config)
    assert "resources.accelerator (L4) needs GPUs" in str(caught.value)
