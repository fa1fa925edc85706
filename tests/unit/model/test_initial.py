"""Initial weights from files: what fits is loaded, the rest is said aloud, and nothing is loaded by halves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models

from mtl.errors import ConfigError
from mtl.model import PATTERNS, HeadSpec, MultiTaskModel, build_backbone
from mtl.model.initial import load_initial

OUTPUTS = {"object": 3, "kind": 1}


def made(pattern: str = "hard", outputs: Mapping[str, int] = OUTPUTS, seed: int = 0, **arguments: Any) -> Any:
    torch.manual_seed(seed)
    backbone = build_backbone("mtl.model.resnet9:resnet9", {"width": 8}, 16)
    return PATTERNS[pattern](backbone, HeadSpec(outputs), **arguments)


def exported(path: Path, tensors: Mapping[str, Tensor]) -> str:
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)
    return str(path)


def plain(model: MultiTaskModel) -> dict[str, Tensor]:
    """The backbone's tensors under the names that it gives them."""
    return model.backbone_parts()["backbone"].state_dict()


def test_weights_of_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = models.resnet18(num_classes=7)
    file = exported(tmp_path / "resnet18.safetensors", source.state_dict())
    model = PATTERNS["hard"](build_backbone("resnet18", {}, 64), HeadSpec(OUTPUTS)).eval()
    done = load_initial(model, file)
    source.fc = torch.nn.Identity()  # type: ignore[assignment]
    images = torch.randn(2, 3, 64, 64)
    assert model.forward_shared(images)[0].equal(source.eval()(images))  # type: ignore[operator]
    assert done.unused == ("fc.bias", "fc.weight")
    assert set(done.missing) == {f"heads.{task}.out.{kind}" for task in OUTPUTS for kind in ("weight", "bias")}
    told = "\n".join(done.describe())
    assert f"120 tensors loaded from {file}" in told
    assert "2 tensors of the file are not used: fc.bias, fc.weight" in told
    assert "4 tensors start anew, because the file has none: heads.object.out.weight" in told


def test_a_checkpoint_of_the_same_tasks_is_loaded_whole(tmp_path: Path) -> None:
    source, model = made(seed=1), made()
    done = load_initial(model, exported(tmp_path / "model.safetensors", source.state_dict()))
    assert all(tensor.equal(source.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert (done.replaced, done.missing, done.unused) == ((), (), ())
    assert len(done.describe()) == 1


def test_heads_of_another_width_are_replaced_and_said(tmp_path: Path) -> None:
    source, model = made(outputs={"object": 9, "kind": 1, "old": 2}, seed=1), made(outputs={**OUTPUTS, "new": 5})
    untouched = model.heads["object"].out.weight.clone()
    done = load_initial(model, exported(tmp_path / "model.safetensors", source.state_dict()))
    assert done.replaced == ("heads.object.out.weight [9, 64] -> [3, 64]", "heads.object.out.bias [9] -> [3]")
    assert done.missing == ("heads.new.out.weight", "heads.new.out.bias")
    assert set(done.unused) >= {"heads.old.out.weight", "heads.object.out.weight"}
    assert model.heads["object"].out.weight.equal(untouched)
    assert model.heads["kind"].out.weight.equal(source.heads["kind"].out.weight)
    assert "[9, 64] -> [3, 64]" in "\n".join(done.describe())


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize(
    ("pattern", "arguments"),
    [("split", {"stage": "stage2"}), ("cross-stitch", {}), ("mtan", {}), ("mmoe", {"experts": 2, "expert_width": 4})],
)
def test_one_backbone_serves_every_copy_of_a_stage(
    prefix: str, pattern: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    tensors = plain(made(seed=1))
    model = made(pattern, **arguments)
    load_initial(model, exported(tmp_path / "x.safetensors", {f"{prefix}{name}": t for name, t in tensors.items()}))
    for part in model.backbone_parts().values():
        assert all(tensor.equal(tensors[name]) for name, tensor in part.state_dict().items())


def test_a_split_run_goes_on_from_its_own_towers(tmp_path: Path) -> None:
    source = made("split", seed=1, stage="stage3")
    with torch.no_grad():
        for number, tower in enumerate(source.towers.values()):
            for parameter in tower.parameters():
                parameter.fill_(float(number))
    model = made("split", stage="stage3")
    load_initial(model, exported(tmp_path / "model.safetensors", source.state_dict()))
    assert all(tensor.equal(source.state_dict()[name]) for name, tensor in model.state_dict().items())


def refused(model: MultiTaskModel, file: str, message: str, **options: bool) -> ConfigError:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message) as caught:
        load_initial(model, file, **options)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert caught.value.do
    return caught.value


def test_nothing_that_fits_is_an_error(tmp_path: Path) -> None:
    file = exported(tmp_path / "other.safetensors", {"features.0.weight": torch.zeros(3)})
    error = refused(made(), file, "No tensor of .* fits", partial=True)
    assert "features.0.weight" in str(error.got)
    assert "backbone.stem.0.weight" in str(error.expected)


def test_a_backbone_that_is_not_whole_is_an_error_unless_that_is_wanted(tmp_path: Path) -> None:
    tensors = dict(plain(made(seed=1)))
    del tensors["stage1.0.0.weight"]
    tensors["stem.0.weight"] = torch.zeros(16, 3, 3, 3)
    file = exported(tmp_path / "part.safetensors", tensors)
    error = refused(made(), file, "2 tensors of the backbone")
    assert "backbone.stem.0.weight [16, 3, 3, 3] -> [8, 3, 3, 3]" in str(error.got)
    assert "backbone.stage1.0.0.weight" in str(error.got)
    done = load_initial(made(), file, partial=True)
    assert done.replaced == ("backbone.stem.0.weight [16, 3, 3, 3] -> [8, 3, 3, 3]",)
    assert "backbone.stage1.0.0.weight" in done.missing


def test_files_from_before_batch_norm_counted_batches(tmp_path: Path) -> None:
    tensors = {name: t for name, t in plain(made(seed=1)).items() if not name.endswith("num_batches_tracked")}
    assert load_initial(made(), exported(tmp_path / "old.safetensors", tensors)).loaded


def test_weights_take_the_models_type(tmp_path: Path) -> None:
    tensors = plain(made(seed=1))
    model = made().double()
    load_initial(model, exported(tmp_path / "x.safetensors", {name: t.half() for name, t in tensors.items() if t.ndim}))
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float64}


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04 a zip archive of a pickle, as torch.save writes it")
    error = refused(made(), str(tmp_path / "weights.pth"), "can not be read")
    assert "no safetensors file" in str(error.got)
    assert "convert" in str(error.do)
    refused(made(), str(tmp_path / "none.safetensors"), "can not be read")
