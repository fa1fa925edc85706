"""deploy/: the image and the RayJob agree with the lock file, with cluster.yaml and with each other."""

import re
import shlex
import tomllib
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from packaging.specifiers import SpecifierSet
from ray._private import ray_constants

from mtl.arguments import parse
from mtl.errors import StoreError
from mtl.on_ray.cluster import ENVIRONMENT
from mtl.store import open_store

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
RAYJOB = DEPLOY / "rayjob.yaml"
DRAIN_TIMEOUT = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
FILES = [ROOT / "cluster.yaml", *sorted(path for path in DEPLOY.iterdir() if path.is_file())]


@cache
def _documents() -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.safe_load_all(RAYJOB.read_text())}


@pytest.fixture
def job() -> dict[str, Any]:
    return _documents()["RayJob"]["spec"]


@cache
def _instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions: (name, the rest on one line)."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, " ".join(rest.split())) for name, rest in re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE)]


def _pinned(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return version


def _containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["rayClusterSpec"]
    return [
        container
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
        for container in group["template"]["spec"]["containers"]
    ]


def test_one_version_of_ray_everywhere(job: dict[str, Any]) -> None:
    version = _pinned("ray")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert job["rayClusterSpec"]["rayVersion"] == version
    image = f"mtl:{project}-ray{version}"
    assert {container["image"] for container in _containers(job)} == {image}
    for text in (DOCKERFILE.read_text(), (ROOT / "docs" / "clusters.md").read_text()):
        assert set(re.findall(r"\bmtl:[\w.-]+", text)) == {image}
    assert ray.__version__ == version, "the tests run against another Ray than the one that is pinned"


def test_image_and_nodes_are_installed_from_the_lock_file_alone() -> None:
    for path in (DOCKERFILE, ROOT / "cluster.yaml"):
        installs = re.findall(r"\bpip\b(?: --\S+)* install(?:[^&|;}]|\n)*", path.read_text())
        assert len(installs) == 1, path
        assert "--require-hashes" in installs[0]
        assert re.search(r"-r \S*requirements\.lock", installs[0])


def test_base_image_has_a_supported_python() -> None:
    (base,) = [rest for name, rest in _instructions() if name == "FROM"]
    found = re.fullmatch(r"python:(3\.\d+)-slim-\w+", base)
    assert found, f"{base}: a name without a host, and a tag that says the version"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"{found[1]}.0" in SpecifierSet(project["requires-python"])


def test_image_is_made_of_tracked_code_only() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    first, *rules = [line for line in lines if not line.startswith("#")]
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert first == "*"
    assert {rest.split()[0] for name, rest in _instructions() if name == "COPY"} == allowed
    assert not any(fnmatch(path, name) for path in allowed for name in (".*", "data", "runs", "shared"))


def test_image_is_not_root() -> None:
    assert ("USER", "1000") in _instructions()


def test_image_sets_the_environment_that_cluster_yaml_sets() -> None:
    (line,) = [rest for name, rest in _instructions() if name == "ENV"]
    image = dict(pair.split("=", 1) for pair in shlex.split(line))
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    (start,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    exported = dict(re.findall(r"\b(RAY_[A-Z_]+)=(\S+?)[ ;]", start))
    assert exported.items() <= image.items()
    assert image["RAY_USAGE_STATS_ENABLED"] == ENVIRONMENT["RAY_USAGE_STATS_ENABLED"]
    (folder,) = [rest for name, rest in _instructions() if name == "WORKDIR"]
    assert image["PYTHONPATH"] == folder
    assert {rest.split()[1] for name, rest in _instructions() if name == "COPY"} == {
        f"{folder}/",
        f"{folder}/mtl",
        f"{folder}/jobs",
    }


_CONTAINER = {
    "name": str,
    "image": str,
    "env": [{"name": str, "value": str}],
    "securityContext": {"allowPrivilegeEscalation": bool, "capabilities": {"drop": [str]}},
    "resources": {"requests": {...: str}, "limits": {...: str}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
_POD = {
    "metadata": {"labels": {...: str}},
    "spec": {
        "serviceAccountName": str,
        "securityContext": {"runAsNonRoot": bool, "runAsUser": int, "seccompProfile": {"type": str}},
        "terminationGracePeriodSeconds": int,
        "nodeSelector": {...: str},
        "tolerations": [{"key": str, "operator": str, "effect": str}],
        "containers": [_CONTAINER],
        "volumes": [{"name": str, "emptyDir": {"medium": str, "sizeLimit": str}}],
    },
}
# The fields of KubeRay 1.7's RayJob that we use, and their types. The API server drops a misspelt field in silence.
_RAY_JOB = {
    "entrypoint": str,
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "preRunningDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": {
        "rayVersion": str,
        "authOptions": {"mode": str},
        "headGroupSpec": {"rayStartParams": {...: str}, "template": _POD},
        "workerGroupSpecs": [
            {
                "groupName": str,
                "replicas": int,
                "minReplicas": int,
                "maxReplicas": int,
                "rayStartParams": {...: str},
                "template": _POD,
            }
        ],
    },
}


def _misfits(value: Any, shape: Any, where: str) -> list[str]:
    if isinstance(shape, type):
        return [] if type(value) is shape else [f"{where}: {value!r} is no {shape.__name__}"]
    if isinstance(shape, list):
        return [found for item in value for found in _misfits(item, shape[0], where)]
    unknown = [f"{where}.{key} is no field" for key in value if key not in shape and ... not in shape]
    known = {key: shape.get(key, shape.get(...)) for key in value if key in shape or ... in shape}
    return unknown + [found for key, kind in known.items() for found in _misfits(value[key], kind, f"{where}.{key}")]


def test_kuberay_knows_every_field(job: dict[str, Any]) -> None:
    head = _documents()["RayJob"]
    assert (head["apiVersion"], head["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", head["metadata"]["name"])
    assert _misfits(job, _RAY_JOB, "spec") == []
    assert _misfits({**job, "backoffLimits": 1, "entrypoint": 1}, _RAY_JOB, "spec") == [
        "spec.backoffLimits is no field",
        "spec.entrypoint: 1 is no str",
    ]


def test_the_job_fits_the_pods_it_gets(job: dict[str, Any]) -> None:
    python, script, *rest = shlex.split(job["entrypoint"])
    assert (python, script) == ("python", "/mtl/jobs/train.py")
    resources = parse(rest).config.resources
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    limits, per_pod = container["resources"]["limits"], resources.workers / group["replicas"]
    assert limits == container["resources"]["requests"]
    assert int(limits["nvidia.com/gpu"]) == per_pod
    assert int(limits["cpu"]) >= per_pod * resources.cpus_per_worker
    assert job["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_a_pod_told_to_go_drains_its_node_within_its_grace_period(job: dict[str, Any]) -> None:
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    (drain_s,) = [item["value"] for item in container["env"] if item["name"] == DRAIN_TIMEOUT]
    assert 60 <= int(drain_s) <= group["template"]["spec"]["terminationGracePeriodSeconds"] - 10
    assert hasattr(ray_constants, DRAIN_TIMEOUT), "Ray no longer reads it"


def test_a_bucket_left_blank_stops_the_job_at_once(job: dict[str, Any]) -> None:
    addresses = re.findall(r"s3://\S+", job["entrypoint"])
    assert len(addresses) == 2
    for address in addresses:
        with pytest.raises(StoreError, match="BUCKET"):
            open_store(address)


def test_pods_are_confined(job: dict[str, Any]) -> None:
    assert job["rayClusterSpec"]["authOptions"]["mode"] == "token"
    selected = _documents()["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    cluster = job["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]
        assert selected.items() <= pod["metadata"]["labels"].items()
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["serviceAccountName"] == _documents()["ServiceAccount"]["metadata"]["name"]
    for container in _containers(job):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_costs_end(job: dict[str, Any]) -> None:
    assert job["shutdownAfterJobFinishes"] is True
    assert 0 < job["preRunningDeadlineSeconds"] < job["activeDeadlineSeconds"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_open_to_the_world_and_nothing_secret_is_in_a_file(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"0\.0\.0\.0|::/0|Cidr", text)
    assert not re.search(r"AKIA[0-9A-Z]{16}|PRIVATE KEY|kind: Secret|auth_token: *['\"]?[0-9a-f]{16}", text)
    assert not re.search(r"(?i)(password|secret_access_key|auth_token)\s*[=:]\s*\S*\w{16}", text)
