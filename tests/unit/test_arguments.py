"""The command line: a recipe or a file, and changes to it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mtl import recipes
from mtl.arguments import anchored, given, parse
from mtl.config import load
from mtl.errors import ConfigError, DataError, MtlError
from tests.helpers.datasets import tiny
from tests.helpers.jobs import tiny_config, write_config


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_recipe_is_complete() -> None:
    asked = parse(["shapes"])
    assert asked.preview is None
    home = {"data": str(Path.cwd() / "data/shapes"), "storage": str(Path.cwd() / "runs")}
    assert asked.config == recipes.SHAPES.model_copy(update=home)


def test_any_value_can_be_changed() -> None:
    flags = "--epochs 3 --optimizer.lr 0.5 --tasks.group.weight=2 --resources.workers 1 --model.batch-norm local"
    config = parse(["article", *flags.split(), "--augment.crop-scale", "0.5", "0.9", "--no-deterministic"]).config
    assert (config.epochs, config.optimizer.lr, config.tasks["group"].weight) == (3, 0.5, 2)
    assert (config.resources.workers, config.model.batch_norm, config.augment.crop_scale) == (1, "local", (0.5, 0.9))
    assert not config.deterministic
    assert config.tasks["fine"] == recipes.get("article").tasks["fine"]


def test_another_backbone_has_none_of_the_arguments_of_the_recipes() -> None:
    def model(*flags: str) -> tuple[str, dict[str, object]]:
        found = parse(["shapes", *flags]).config.model
        return found.backbone, dict(found.backbone_args)

    theirs, args = recipes.SHAPES.model.backbone, dict(recipes.SHAPES.model.backbone_args)
    assert args
    assert model("--model.backbone", "resnet18") == ("resnet18", {})
    assert model("--model.backbone=resnet18") == ("resnet18", {})
    assert model("--model.backbone", theirs) == model() == (theirs, args)
    assert model("--model.backbone", "mine:net", "--model.backbone-args", "depth", "3") == ("mine:net", {"depth": 3})


@pytest.mark.parametrize("spell", [lambda path: ["--config", path], lambda path: [f"--config={path}"]])
def test_a_saved_configuration_and_changes_to_it(spell: Callable[[str], list[str]], tmp_path: Path) -> None:
    config = tiny_config("s3://bucket/data", "s3://bucket/runs", seed=7)
    path = str(write_config(tmp_path / "mine.yaml", config))
    assert parse(spell(path)).config == config
    assert parse([*spell(path), "--seed", "8"]).config == config.model_copy(update={"seed": 8})


def test_truths_among_arguments_are_no_words() -> None:
    values = ["aux_logits", "false", "init_weights", "True", "width", "3", "rate", "0.5", "norm", "batch"]
    argv = ["imagenet-resnet50", "--data", "data", "--model.backbone-args", *values]
    config = parse([*argv, "--balancing.arguments", "exact", "true"]).config
    made = config.model.backbone_args
    assert made == {"aux_logits": False, "init_weights": True, "width": 3, "rate": 0.5, "norm": "batch"}
    assert [type(value) for value in made.values()] == [bool, bool, int, float, str]
    assert config.balancing.arguments == {"exact": True}


def test_preview() -> None:
    assert parse(["shapes", "--preview", "picture.png"]).preview == Path("picture.png")


def test_auto_reads_the_data_set_and_writes_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny(tmp_path / "data", name="My Photos!")
    config = parse(["auto", "--data", "data", "--epochs", "3"]).config
    assert list(config.tasks) == ["object", "kind", "angle", "amount"]
    assert (config.name, config.epochs, config.data) == ("my-photos", 3, str(tmp_path / "data"))
    assert "wrote my-photos.yaml" in capsys.readouterr().out
    assert load(Path("my-photos.yaml")).tasks == config.tasks

    mine = Path("my-photos.yaml").read_text().replace("epochs: 20", "epochs: 5")
    Path("my-photos.yaml").write_text(mine)
    parse(["auto", "--data=data"])
    assert Path("my-photos.yaml").read_text() == mine
    assert "stays as it is" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_names_every_recipe(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(argv)
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in recipes.ABOUT)


def test_help_of_a_recipe_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(["shapes", "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert "--tasks.rotation.weight" in out
    assert "peak learning rate" in out


@pytest.mark.parametrize(
    ("argv", "kind", "fragment"),
    [
        (["imagnet"], ConfigError, "There is no recipe 'imagnet'"),
        (["auto"], ConfigError, "auto needs a data set"),
        (["auto", "--data"], ConfigError, "auto needs a data set"),
        (["auto", "--data", "nowhere"], DataError, "no data set at"),
        (["--config"], ConfigError, "--config needs a file"),
        (["--config", "none.yaml"], ConfigError, "none.yaml can not be read"),
        (["shapes", "--epochs", "0"], ConfigError, "epochs: 0"),
        (["shapes", "--name", "../up"], ConfigError, "../up"),
        (["shapes", "--global-batch", "100"], ConfigError, "multiple of order.lanes"),
    ],
)
def test_what_is_wrong_is_said(argv: list[str], kind: type[MtlError], fragment: str) -> None:
    with pytest.raises(kind) as caught:
        parse(argv)
    error = caught.value
    assert fragment in str(error)
    assert all(part is not None for part in (error.got, error.expected, error.do)), error


@pytest.mark.parametrize(
    ("argv", "fragment"),
    [
        (["shapes", "--optimiser.lr", "3"], "--optimizer.lr"),
        (["shapes", "--epochs", "many"], "--epochs"),
        (["shapes", "--runtime", "slurm"], "local"),
        (["shapes", "stray"], "stray"),
        (["shapes", "--data"], "--data"),
    ],
)
def test_malformed_flags_end_with_status_2(argv: list[str], fragment: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(argv)
    assert exit_.value.code == 2
    told = capsys.readouterr()
    assert fragment in told.err + told.out


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--a", "1", "--b", "2"], "2"),
        (["--b=2=3"], "2=3"),
        (["--b="], ""),
        (["--b"], None),
        (["--bb", "2"], None),
        ([], None),
    ],
)
def test_given(argv: list[str], value: str | None) -> None:
    assert given("--b", argv) == value


def test_folders_mean_the_same_to_every_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home-of-the-user")
    assert anchored("runs") == str(tmp_path / "runs")
    assert anchored("~/runs") == "/home-of-the-user/runs"
    assert anchored("/far/away") == "/far/away"
    assert anchored("s3://bucket/runs") == "s3://bucket/runs"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert anchored("runs") == "/home-of-the-user/mtl/runs"
    assert anchored("/far/away") == "/far/away"
