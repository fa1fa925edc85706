"""What each recipe's file says: enough to run it, and true where it can be checked."""

import re
from pathlib import Path

import pytest

from mtl import recipes
from mtl.arguments import parse
from mtl.config import parse as parse_yaml
from mtl.data.derivation import Derivation
from mtl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", recipes.DESCRIPTIONS)
def test_says_how_to_run_it_and_on_what(name: str) -> None:
    text = recipes.DESCRIPTIONS[name]
    assert f"python jobs/train.py {name}" in text
    assert re.search(r"^hardware  \w", text, re.MULTILINE)
    assert recipes.ABOUT[name] == text.splitlines()[0]


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_survives_being_saved(name: str) -> None:
    config = recipes.get(name)
    assert parse_yaml(config.to_yaml()) == config
    assert all(task in recipes.DESCRIPTIONS[name] for task in config.tasks)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_help_begins_with_the_recipe(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([name, "--help"])
    assert not caught.value.code
    said = capsys.readouterr().out
    assert said.index(recipes.ABOUT[name]) < said.index("--epochs")


@pytest.mark.parametrize("name", ["imagenet-sample", "imagenet-resnet50"])
def test_classes_are_those_that_its_prepare_command_makes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    derived = re.findall(r"--derive (\S+)", recipes.DESCRIPTIONS[name])
    made = {d.new: len(set(d.names.values())) for d in map(Derivation.load, derived)}
    tasks = recipes.get(name).tasks
    assert made == {"group": tasks["group"].classes, "living": tasks["living"].classes}
    assert tasks["fine"].classes == 1000


def test_hours_of_imagenet_follow_from_the_rate_they_cite() -> None:
    config, text = recipes.get("imagenet-resnet50"), recipes.DESCRIPTIONS["imagenet-resnet50"]
    (rate,) = re.findall(r"at ([\d,]+) images/s", text)
    (hours,) = re.findall(r"hours +([\d.]+) for training", text)
    images = 1_281_167 * (1 - 0.008)
    assert float(hours) == pytest.approx(config.epochs * images / int(rate.replace(",", "")) / 3600, abs=0.05)


def test_products_of_imagenet_are_what_it_says() -> None:
    text = " ".join(recipes.DESCRIPTIONS["imagenet-resnet50"].split())
    assert "Products are in TF32" in text
    assert recipes.get("imagenet-resnet50").precision == "tf32"
    smaller = re.findall(r"(--precision bf16 --augment.grow-from-px \d+)", text)
    config = parse(["imagenet-resnet50", *smaller[0].split()]).config
    assert (config.precision, config.augment.grow_from_px) == ("bf16", 160)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_imagenet_runs_on_fewer_gpus_with_the_same_batches(workers: int) -> None:
    config = recipes.get("imagenet-resnet50")
    smaller = config.resources.model_copy(update={"workers": workers})
    assert parse_yaml(config.model_copy(update={"resources": smaller}).to_yaml()).resources == smaller


@pytest.mark.parametrize("name", ["Bad", "-a", "a" * 64, "a b", "a/b", "", "a\n"])
def test_a_name_that_no_run_can_have(name: str) -> None:
    with pytest.raises(ConfigError, match="not valid") as caught:
        parse(["shapes", f"--name={name}"])
    assert f"name: {name!r}" in str(caught.value)
    assert "^[a-z0-9][a-z0-9._-]{0,62}$" in str(caught.value)
