"""cluster.yaml and deploy/aws.yaml, offline: by the autoscaler's own checks, by the model of EC2's API, and played
through on moto, from the empty account to launched nodes."""

import copy
import json
import re
import shlex
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
import yaml
from botocore.model import ListShape, Shape, StructureShape
from botocore.validate import ParamValidator
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.command_runner import SSHCommandRunner
from ray.autoscaler._private.util import prepare_config, validate_config

from mtl.errors import AccessDenied, NotFound
from mtl.on_ray import spot
from mtl.on_ray.cluster import ENVIRONMENT, labels
from mtl.recipes import get
from mtl.store import open_store

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster.yaml"
TEMPLATE = ROOT / "deploy" / "aws.yaml"
HEAD, WORKERS = "head", ("l4", "a10g", "a100")
BUCKET = "photos"


@pytest.fixture(autouse=True, scope="module")
def offline() -> Iterator[None]:
    """Credentials of nobody, and no place where boto3 could look for others."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, "/dev/null")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_DEFAULT_REGION", "us-west-2")
        yield


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """cluster.yaml as `ray up` sees it after its first step."""
    prepared = prepare_config(yaml.safe_load(CLUSTER.read_text()))
    validate_config(prepared)
    return prepared


@pytest.fixture
def nodes(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What EC2 is asked for, by node type."""
    return {name: node["node_config"] for name, node in cluster["available_node_types"].items()}


def test_the_head_accepts_what_ray_up_prepared(cluster: dict[str, Any]) -> None:
    again = prepare_config(copy.deepcopy(cluster))
    validate_config(again)
    assert again["worker_setup_commands"] == cluster["setup_commands"] * 2, "Ray no longer repeats them"


def test_nothing_is_left_to_rays_defaults(cluster: dict[str, Any]) -> None:
    own = yaml.safe_load(CLUSTER.read_text())
    commands = [key for key in cluster if key.endswith("_commands")]
    assert all(cluster[key] == own.get(key, []) for key in commands if not re.match("(head|worker)_setup", key))
    assert cluster["head_setup_commands"] == cluster["worker_setup_commands"] == own["setup_commands"]
    assert "latest" not in CLUSTER.read_text()


def test_costs_end(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert set(types) == {HEAD, *WORKERS}
    assert all(node["min_workers"] == 0 for node in types.values())
    assert all(0 < types[name]["max_workers"] <= cluster["max_workers"] for name in WORKERS)
    assert types[HEAD]["max_workers"] == 0
    assert cluster["idle_timeout_minutes"] <= 15
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_workers_are_spot_and_the_head_is_not(cluster: dict[str, Any], nodes: dict[str, Any]) -> None:
    assert cluster["available_node_types"][HEAD]["resources"] == {"CPU": 0}
    for name, node in nodes.items():
        market = node.get("InstanceMarketOptions", {}).get("MarketType", "on-demand")
        assert market == ("on-demand" if name == HEAD else "spot")
        assert cluster["available_node_types"][name]["labels"]["ray.io/market-type"] == market


def test_one_zone_and_distinct_accelerators(cluster: dict[str, Any]) -> None:
    provider, types = cluster["provider"], cluster["available_node_types"]
    zone = provider["availability_zone"]
    assert re.fullmatch(re.escape(provider["region"]) + "[a-z]", zone)
    assert {node["labels"]["ray.io/availability-zone"] for node in types.values()} == {zone}
    assert set(re.findall(r"\b[a-z]{2}-[a-z]+-\d\b", CLUSTER.read_text())) == {provider["region"]}

    recipe = get("imagenet-resnet50").resources
    for name in WORKERS:
        chosen = recipe.model_copy(update={"accelerator": types[name]["labels"]["ray.io/accelerator-type"]})
        matching = [other for other in WORKERS if labels(chosen).items() <= types[other]["labels"].items()]
        assert matching == [name]


def test_ec2_understands_every_node(nodes: dict[str, Any]) -> None:
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    assert shape is not None
    for name, node in nodes.items():
        request = {**node, "MinCount": 1, "MaxCount": 1, "SubnetId": "subnet-0", "TagSpecifications": []}
        report = ParamValidator().validate(request, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
        assert not list(_unknown_words(request, shape, name))
    misspelt = {**nodes[HEAD], "MetadataOptions": {"HttpTokens": "requird", "HttpToken": "required"}}
    assert ParamValidator().validate(misspelt, shape).has_errors()
    assert list(_unknown_words(misspelt, shape, HEAD)) == ["head.MetadataOptions.HttpTokens: requird"]


def _unknown_words(value: Any, shape: Shape, where: str) -> Iterator[str]:
    """Values that are none of an enumeration's, which botocore's own validation lets pass."""
    if isinstance(shape, StructureShape):
        for key in value.keys() & shape.members.keys():
            yield from _unknown_words(value[key], shape.members[key], f"{where}.{key}")
    elif isinstance(shape, ListShape):
        for item in value:
            yield from _unknown_words(item, shape.member, where)
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{where}: {value}"


def test_every_node_is_closed_and_encrypted(nodes: dict[str, Any]) -> None:
    for name, node in nodes.items():
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert node["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
        assert node["BlockDeviceMappings"], name
        for disk in node["BlockDeviceMappings"]:
            assert disk["Ebs"]["Encrypted"] is True
            assert disk["Ebs"]["DeleteOnTermination"] is True
        assert len(node["SecurityGroupIds"]) == 1
        assert node["IamInstanceProfile"]["Name"] == ("mtl-head" if name == HEAD else "mtl-worker")


def test_ray_starts_with_a_token_and_on_loopback(cluster: dict[str, Any]) -> None:
    exported = {}
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in cluster[key] if "ray start" in command]
        exported[key] = dict(re.findall(r"\b([A-Z_]+)=(\S+?)[ ;]", start))
        assert exported[key]["RAY_AUTH_MODE"] == "token"
        assert exported[key]["RAY_USAGE_STATS_ENABLED"] == ENVIRONMENT["RAY_USAGE_STATS_ENABLED"]
        assert "ulimit -n 65536" in start
    assert int(exported["head_start_ray_commands"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 120
    head = next(command for command in cluster["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head


def test_nodes_are_set_up_once_from_the_lock_file(cluster: dict[str, Any], tmp_path: Path) -> None:
    """The setup commands, run twice by a real shell in a home folder of their own."""
    assert cluster["file_mounts"]["~/mtl/requirements.lock"] == "requirements.lock"
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    home, tools, log = tmp_path / "home", tmp_path / "bin", tmp_path / "log"
    for folder in (home / ".ray", home / "mtl", tools):
        folder.mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("secret")
    (home / "mtl" / "requirements.lock").write_text("ray==0")
    pip = f'#!/bin/sh\necho "$@" >> {log}\n'
    venv = f"mkdir -p {home}/mtl/venv/bin && cp {tools}/pip {home}/mtl/venv/bin/python"
    (tools / "pip").write_text(pip)
    (tools / "python3").write_text(f'#!/bin/sh\ncase "$*" in "-m venv"*) {venv};; esac\n')
    (tools / "sudo").write_text("#!/bin/sh\nexit 1\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)

    for command in cluster["setup_commands"] * 2:
        environment = {"HOME": str(home), "PATH": f"{tools}:/usr/bin:/bin"}
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"

    (installed,) = log.read_text().splitlines()
    assert "--require-hashes" in installed
    assert installed.endswith(f"-r {home}/mtl/requirements.lock")
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    (line,) = (home / ".bashrc").read_text().splitlines()
    assert line == "export PATH=$HOME/mtl/venv/bin:$PATH RAY_AUTH_MODE=token"


def test_workers_watch_for_the_end_of_their_instance(cluster: dict[str, Any], tmp_path: Path) -> None:
    """The command that starts the watcher, run by a real shell; it returns though the watcher stays."""
    assert (ROOT / cluster["file_mounts"]["~/mtl/spot.py"]).samefile(spot.__file__)
    python = tmp_path / "mtl" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nsleep 0.2\necho $RAY_AUTH_MODE $@\necho > {tmp_path}/done\n")
    python.chmod(0o755)
    *_, start, command = cluster["worker_start_ray_commands"]
    assert "ray start" in start
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}
    done = subprocess.run(["bash", "-c", f"true && ({command})"], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not (tmp_path / "done").exists()
    for _ in range(500):
        if (tmp_path / "done").exists():
            break
        time.sleep(0.02)
    said = (tmp_path / "mtl" / "spot.log").read_text()
    assert said.strip() == f"token {tmp_path}/mtl/spot.py --address 10.0.0.1:6379"


def test_the_head_is_reached_by_its_id_through_session_manager(cluster: dict[str, Any]) -> None:
    class Recorder:
        def check_call(self, command: list[str], **_: Any) -> None:
            self.command = command

    recorder = Recorder()
    runner = SSHCommandRunner("", "i-0123", None, cluster["auth"], "mtl", recorder, use_internal_ip=False)
    runner.run("uptime")
    assert "ubuntu@i-0123" in recorder.command
    (proxy,) = [option for option in recorder.command if option.startswith("ProxyCommand=")]
    assert shlex.split(proxy)[1:3] == ["ssm", "start-session"]
    assert '"' not in proxy, "Ray quotes it for rsync"


# On moto: an account in which deploy/aws.yaml is deployed.


@pytest.fixture(scope="module")
def account() -> Iterator[dict[str, str]]:
    """The outputs of the deployed template."""
    with mock_aws(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tried to parse AWS::EC2::KeyPair")
        ec2, stacks = boto3.Session().client("ec2"), boto3.Session().client("cloudformation")
        # moto publishes no images for deep learning.
        template, found = re.subn(
            r"/aws/service/deeplearning/\S+",
            "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64",
            TEMPLATE.read_text(),
        )
        assert found == 1
        given = {"Vpc": ec2.describe_vpcs()["Vpcs"][0]["VpcId"], "Bucket": BUCKET, "PublicKey": "ssh-ed25519 AAAA mtl"}
        stacks.create_stack(
            StackName="mtl",
            TemplateBody=template,
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
        )
        (stack,) = stacks.describe_stacks(StackName="mtl")["Stacks"]
        yield {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


def _filled_in(account: dict[str, str]) -> dict[str, Any]:
    """cluster.yaml after the operator's edit."""
    text = CLUSTER.read_text()
    for blank, value in {
        "sg-00000000000000000": account["SecurityGroup"],
        "ami-00000000000000000": account["Image"],
    }.items():
        assert text.count(blank) == 1
        text = text.replace(blank, value)
    return prepare_config(yaml.safe_load(text))


@pytest.mark.usefixtures("account")
def test_without_the_operators_values_nothing_starts(
    cluster: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError):
        bootstrap_aws(cluster)
    assert "Failed to detect a security group" in capfd.readouterr().err


def test_nodes_as_launched(account: dict[str, str]) -> None:
    ec2, iam = boto3.Session().client("ec2"), boto3.Session().client("iam")

    def made() -> tuple[int, ...]:
        groups, keys = ec2.describe_security_groups()["SecurityGroups"], ec2.describe_key_pairs()["KeyPairs"]
        return len(groups), len(keys), len(iam.list_roles()["Roles"])

    before = made()
    ready = bootstrap_aws(_filled_in(account))
    assert made() == before, "Ray made a security group, a key or a role of its own"
    provider = AWSNodeProvider(ready["provider"], ready["cluster_name"])
    for name, node in ready["available_node_types"].items():
        provider.create_node(node["node_config"], {"ray-node-kind": name, "ray-user-node-type": name}, 1)

    launched = [node for group in ec2.describe_instances()["Reservations"] for node in group["Instances"]]
    assert len(launched) == len(ready["available_node_types"])
    for node in launched:
        kind = next(tag["Value"] for tag in node["Tags"] if tag["Key"] == "ray-user-node-type")
        assert node.get("InstanceLifecycle") == (None if kind == HEAD else "spot")
        assert node["Placement"]["AvailabilityZone"] == ready["provider"]["availability_zone"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert [group["GroupId"] for group in node["SecurityGroups"]] == [account["SecurityGroup"]]
        disks = [disk["Ebs"]["VolumeId"] for disk in node["BlockDeviceMappings"]]
        assert all(volume["Encrypted"] for volume in ec2.describe_volumes(VolumeIds=disks)["Volumes"])


def test_only_nodes_of_the_cluster_come_in(account: dict[str, str]) -> None:
    (group,) = (
        boto3.Session().client("ec2").describe_security_groups(GroupIds=[account["SecurityGroup"]])["SecurityGroups"]
    )
    (rule,) = group["IpPermissions"]
    assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [account["SecurityGroup"]]
    assert [rule["IpRanges"], rule["Ipv6Ranges"], rule["PrefixListIds"]] == [[], [], []]


@pytest.mark.usefixtures("account")
def test_resources_are_those_of_the_instance_types(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    asked = [types[name]["node_config"]["InstanceType"] for name in WORKERS]
    described = boto3.Session().client("ec2").describe_instance_types(InstanceTypes=asked)["InstanceTypes"]
    facts = {item["InstanceType"]: item for item in described}
    for name in WORKERS:
        fact = facts[types[name]["node_config"]["InstanceType"]]
        (gpu,) = fact["GpuInfo"]["Gpus"]
        assert types[name]["resources"] == {"CPU": fact["VCpuInfo"]["DefaultVCpus"], "GPU": gpu["Count"]}
        assert types[name]["labels"]["ray.io/accelerator-type"] == gpu["Name"]
        assert "spot" in fact["SupportedUsageClasses"]


@pytest.mark.usefixtures("account")
def test_roles_grant_named_actions_on_named_things() -> None:
    iam = boto3.Session().client("iam")
    profiles = {p["InstanceProfileName"]: p["Roles"] for p in iam.list_instance_profiles()["InstanceProfiles"]}
    assert {name: [role["RoleName"] for role in roles] for name, roles in profiles.items()} == {
        "mtl-head": ["mtl-head"],
        "mtl-worker": ["mtl-worker"],
    }
    assert not iam.list_role_policies(RoleName="mtl-worker")["PolicyNames"]
    anything = set()
    for name in iam.list_role_policies(RoleName="mtl-head")["PolicyNames"]:
        document = yaml.safe_load(iam.get_role_policy(RoleName="mtl-head", PolicyName=name)["PolicyDocument"])
        for statement in document["Statement"]:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            assert not any("*" in action for action in actions)
            anything |= set(actions) if statement["Resource"] == "*" else set()
    # These can not be narrowed to a resource.
    assert {action for action in anything if not action.startswith("ssm")} == {"ec2:DescribeInstances"}
    assert len(re.findall(r"ManagedPolicyArns: \[!Ref Storage\]", TEMPLATE.read_text())) == 2


def _storage_policy() -> dict[str, Any]:
    iam = boto3.Session().client("iam")
    (policy,) = [p for p in iam.list_policies(Scope="Local")["Policies"] if p["PolicyName"] == "mtl-storage"]
    version = iam.get_policy_version(PolicyArn=policy["Arn"], VersionId=policy["DefaultVersionId"])
    return version["PolicyVersion"]["Document"]


@pytest.mark.usefixtures("account")
def test_the_documented_policy_is_the_deployed_one() -> None:
    text = (ROOT / "docs" / "clusters.md").read_text()
    (documented,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert json.loads(documented.replace("BUCKET", BUCKET)) == _storage_policy()


@pytest.mark.usefixtures("account")
def test_the_storage_policy_is_enough_and_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    s3, iam = boto3.Session().client("s3"), boto3.Session().client("iam")
    for bucket in (BUCKET, "elsewhere"):
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        for key in ("data/set/manifest.json", "private"):
            s3.put_object(Bucket=bucket, Key=key, Body=b"1")
    iam.create_user(UserName="node")
    iam.put_user_policy(UserName="node", PolicyName="storage", PolicyDocument=json.dumps(_storage_policy()))
    key = iam.create_access_key(UserName="node")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    big = tmp_path / "big"
    big.write_bytes(bytes(9 << 20))  # more than one part

    @set_initial_no_auth_action_count(0)
    def as_node() -> None:
        data, run = open_store(f"s3://{BUCKET}/data/set"), open_store(f"s3://{BUCKET}/runs/cats")
        assert data.get("manifest.json") == b"1"
        assert data.list() == ["manifest.json"]
        with pytest.raises(NotFound):
            run.get("run.json")
        version = run.put_if("run.json", b"1", version=None)
        run.put_if("run.json", b"2", version=version)
        run.put_file("big", big)
        run.delete("big")
        for forbidden in (
            lambda: data.put("manifest.json", b"2"),
            lambda: data.delete("manifest.json"),
            lambda: open_store(f"s3://{BUCKET}").get("private"),
            lambda: open_store("s3://elsewhere/data/set").get("manifest.json"),
            lambda: open_store("s3://elsewhere").list(),
        ):
            with pytest.raises(AccessDenied):
                forbidden()

    as_node()
