"""Every sharing pattern: whose parameters are whose, one boundary where there is one, samples that stay apart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtl.config_model import Sharing
from mtl.errors import ConfigError
from mtl.model import PATTERNS, BoundaryModel, HeadSpec, MultiTaskModel, build_backbone
from mtl.model.batchnorm import apply_policy, has_batch_norm
from mtl.model.sharing.mmoe import mixed
from mtl.runtime import LocalRuntime
from tests.helpers.ranks import Group, values

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
OUTPUTS = {"object": 3, "kind": 1, "angle": 2}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "hard": {},
    "split": {"stage": "stage3"},
    "mmoe": {"experts": 3, "expert_width": 6},
    "cgc": {"experts": 2, "task_experts": 2, "expert_width": 6},
    "ple": {"experts": 2, "task_experts": 1, "expert_width": 6, "levels": 3},
    "mtan": {},
    "cross-stitch": {},
}
MAPPED = ("hard", "split", "mtan", "cross-stitch")
CASES = [(pattern, False) for pattern in PATTERNS] + [(pattern, True) for pattern in MAPPED]
BOUNDED = ("hard", "split", "mmoe", "cgc", "mtan")


def made(pattern: str, attention: bool = False, norm: str = "group", name: str = "mtl.model.resnet9:resnet9") -> Any:
    torch.manual_seed(0)
    args: dict[str, object] = {"width": 8, "norm": norm} if name.endswith("resnet9") else {}
    backbone = build_backbone(name, args, 16)
    model = PATTERNS[pattern](backbone, HeadSpec(OUTPUTS, 4, attention=attention), **ARGUMENTS[pattern])
    with torch.no_grad():  # queries begin at zero: in general position, every parameter counts
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double()


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loss(outputs: dict[str, Tensor]) -> Tensor:
    return torch.stack([output.square().sum() for output in outputs.values()]).sum()


def test_the_configuration_knows_all_patterns() -> None:
    for pattern, arguments in ARGUMENTS.items():
        assert Sharing(pattern=pattern, **arguments).arguments() == arguments  # type: ignore[arg-type]
    assert set(ARGUMENTS) == set(PATTERNS)


@pytest.mark.parametrize(("pattern", "attention"), CASES)
def test_shared_and_task_parameters_are_disjoint_and_all_there_are(pattern: str, attention: bool) -> None:
    model: MultiTaskModel = made(pattern, attention)
    assert model.tasks == tuple(OUTPUTS)
    parts = [model.shared_parameters(), *(model.task_parameters(task) for task in OUTPUTS)]
    ids = [id(p) for part in parts for p in part]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters()}


@pytest.mark.parametrize(("pattern", "attention"), CASES)
def test_a_loss_of_one_task_reaches_its_own_and_the_shared_parameters_and_no_others(
    pattern: str, attention: bool
) -> None:
    model: MultiTaskModel = made(pattern, attention)
    for task, width in OUTPUTS.items():
        model.zero_grad()
        output = model(images())[task]
        assert output.shape == (4, width)
        output.square().sum().backward()
        reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
        names = {p: name for name, p in model.named_parameters()}
        assert reached == {names[p] for p in [*model.shared_parameters(), *model.task_parameters(task)]}


@pytest.mark.parametrize(("pattern", "attention"), CASES)
def test_samples_stay_apart(pattern: str, attention: bool) -> None:
    model = made(pattern, attention)
    assert not has_batch_norm(model)
    together, alone = model(images()), [model(image[None]) for image in images()]
    for task in OUTPUTS:
        torch.testing.assert_close(together[task], torch.cat([outputs[task] for outputs in alone]), **EXACT)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_micro_batches_of_whole_groups_are_the_batch(pattern: str) -> None:
    model = apply_policy(made(pattern, norm="batch"), "groups", 4)
    grads: list[list[Tensor]] = []
    for parts in (1, 2):
        model.zero_grad()
        for part in images(8).chunk(parts):
            loss(model(part)).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(list(model.parameters()))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize(
    ("pattern", "attention"), [case for case in CASES if case[0] in BOUNDED], ids=lambda value: str(value)
)
def test_the_boundary_separates_shared_from_task_parameters(pattern: str, attention: bool) -> None:
    model: BoundaryModel = made(pattern, attention)
    assert isinstance(model, BoundaryModel)
    shared = model.forward_shared(images())
    expected = model(images())
    assert all(tensor.shape[0] == 4 for tensor in shared)
    held = tuple(tensor.detach().requires_grad_() for tensor in shared)
    outputs = model.forward_tasks(held)
    for task in OUTPUTS:
        torch.testing.assert_close(outputs[task], expected[task], **EXACT)
        torch.testing.assert_close(model.forward_task(task, held), expected[task], **EXACT)
    loss(outputs).backward()
    assert all(tensor.grad is not None for tensor in held)
    assert all(p.grad is None for p in model.shared_parameters())
    assert all(p.grad is not None for task in OUTPUTS for p in model.task_parameters(task))


@pytest.mark.parametrize("pattern", BOUNDED)
def test_each_task_can_be_given_a_view_of_its_own(pattern: str) -> None:
    model: BoundaryModel = made(pattern)
    views: list[tuple[Tensor, ...]] = []

    def boundary(shared: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        views.extend(tuple(tensor.clone() for tensor in shared) for _ in OUTPUTS)
        for view in views:
            for tensor in view:
                tensor.retain_grad()
        return views

    outputs, plain = model(images(), boundary), model(images())
    for task in OUTPUTS:
        torch.testing.assert_close(outputs[task], plain[task], **EXACT)
    outputs["kind"].square().sum().backward()
    assert [all(tensor.grad is not None for tensor in view) for view in views] == [False, True, False]


def test_patterns_without_a_single_boundary_have_none() -> None:
    assert {pattern for pattern in PATTERNS if not isinstance(made(pattern), BoundaryModel)} == {"ple", "cross-stitch"}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_backbone_parts_hold_each_parameter_of_the_backbone(pattern: str) -> None:
    model: MultiTaskModel = made(pattern)
    backbone = build_backbone("mtl.model.resnet9:resnet9", {"width": 8, "norm": "group"}, 16).net
    names = {name for part in model.backbone_parts().values() for name, _ in part.named_parameters()}
    assert names == {name for name, _ in backbone.named_parameters()}
    for path, part in model.backbone_parts().items():
        assert model.get_submodule(path) is part


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_names_of_one_task_do_not_depend_on_the_others(pattern: str) -> None:
    backbone = build_backbone("mtl.model.resnet9:resnet9", {"width": 8, "norm": "group"}, 16)
    few, many = (
        PATTERNS[pattern](backbone, HeadSpec(outputs), **ARGUMENTS[pattern])
        for outputs in ({"kind": 1, "object": 3}, OUTPUTS)
    )
    assert set(few.state_dict()) <= set(many.state_dict())


def test_towers_begin_as_copies_and_share_nothing() -> None:
    model = made("split")
    kernels = [tower.stage3[0][0].weight for tower in model.towers.values()]
    assert all(kernel.equal(kernels[0]) for kernel in kernels)
    assert len({kernel.data_ptr() for kernel in kernels}) == len(OUTPUTS)
    assert not [name for name, _ in model.trunk.named_parameters() if name.startswith("stage3")]


def test_a_tower_that_would_begin_in_place_does_not() -> None:
    backbone = build_backbone("tests.helpers.backbones:small", {}, 16)
    model = PATTERNS["split"](backbone, HeadSpec(OUTPUTS), stage="2").double()
    (trunk,) = model.forward_shared(images())  # type: ignore[operator]
    before = trunk.clone()
    model.forward_tasks((trunk,))  # type: ignore[operator]
    assert trunk.equal(before)


@pytest.mark.parametrize(
    ("stage", "message", "expected"),
    [("layer4", "has no stage 'layer4'", "stem, stage1, stage2, stage3, pool"), ("stem", "shares nothing", "stage1")],
)
def test_where_a_backbone_can_not_be_split(stage: str, message: str, expected: str) -> None:
    backbone = build_backbone("mtl.model.resnet9:resnet9", {"width": 8}, 16)
    with pytest.raises(ConfigError, match=message) as caught:
        PATTERNS["split"](backbone, HeadSpec(OUTPUTS), stage=stage)
    assert expected in str(caught.value.expected)


def test_heads_that_attend_leave_nothing_to_split_at_the_pooling() -> None:
    backbone = build_backbone("mtl.model.resnet9:resnet9", {"width": 8}, 16)
    with pytest.raises(ConfigError, match="take the place of the stage 'pool'"):
        PATTERNS["split"](backbone, HeadSpec(OUTPUTS, attention=True), stage="pool")
    PATTERNS["split"](backbone, HeadSpec(OUTPUTS), stage="pool")


@pytest.mark.parametrize("pattern", ["split", "mtan", "cross-stitch", "attention"])
def test_a_backbone_whose_inside_is_not_known_can_only_be_shared_whole(pattern: str) -> None:
    backbone = build_backbone("tests.helpers.backbones:Backwards", {}, 16)
    attention = pattern == "attention"
    with pytest.raises(ConfigError) as caught:
        PATTERNS["hard" if attention else pattern](
            backbone, HeadSpec(OUTPUTS, attention=attention), **ARGUMENTS.get(pattern, {})
        )
    assert caught.value.do
    for whole in ("hard", "mmoe", "cgc", "ple"):
        made(whole, name="tests.helpers.backbones:Backwards")


def test_a_map_of_one_position_leaves_nothing_to_attend_to() -> None:
    with pytest.raises(ConfigError, match="gives no feature map") as caught:
        PATTERNS["hard"](build_backbone("resnet18", {}, 32), HeadSpec(OUTPUTS, attention=True))
    assert "one position" in str(caught.value.got)


def test_a_mixture_weighs_experts_by_the_softmax_of_its_gate() -> None:
    scores, experts = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, 6, dtype=torch.float64)
    expected = sum(scores.softmax(1)[:, e, None] * experts[:, e] for e in range(3))
    torch.testing.assert_close(mixed(scores, experts), expected, **EXACT)


def test_a_task_mixes_its_own_experts_and_the_shared_ones() -> None:
    model = made("cgc")
    features, shared = model.forward_shared(images())
    own = model.own["kind"](features)
    assert (own.shape, shared.shape) == ((4, 2, 6), (4, 2, 6))
    weights = model.gates["kind"](features).softmax(1)
    mixture = torch.einsum("ne,new->nw", weights, torch.cat([own, shared], 1))
    torch.testing.assert_close(model(images())["kind"], model.heads.one("kind", mixture), **EXACT)


def test_stitches_begin_convex_and_mostly_their_own() -> None:
    model = made("cross-stitch")
    fresh = PATTERNS["cross-stitch"](
        build_backbone("mtl.model.resnet9:resnet9", {"width": 8, "norm": "group"}, 16), HeadSpec(OUTPUTS)
    )
    mix = fresh.stitches[0].mix.view(3, 3, -1)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(mix.sum(1), torch.ones_like(mix.sum(1)))
    torch.testing.assert_close(mix[0, 0], torch.full_like(mix[0, 0], 0.9))
    maps = [torch.randn(2, 16, 4, 4, dtype=torch.float64) for _ in OUTPUTS]
    mix = model.stitches[1].mix.view(3, 3, 16)
    expected = torch.einsum("klc,lnchw->knchw", mix, torch.stack(maps))
    torch.testing.assert_close(torch.stack(model.stitches[1](maps)), expected, **EXACT)


def test_masks_lie_between_nothing_and_the_shared_map() -> None:
    model = made("mtan")
    shared = model.forward_shared(images())
    assert [tuple(tensor.shape[1:]) for tensor in shared] == [(8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]
    masked = model.attention["kind"](shared)
    assert bool((masked.abs() <= shared[-1].abs()).all())


def test_maps_that_no_stride_makes_fit() -> None:
    backbone = build_backbone("alexnet", {}, 96)  # 23 px, 11, 5, 2
    model = PATTERNS["mtan"](backbone, HeadSpec({"kind": 1})).eval()
    assert model(torch.zeros(1, 3, 96, 96))["kind"].shape == (1, 1)


def reduced(patterns: str) -> list[Any]:
    """The gradients of a rank after DistributedDataParallel, at its share of eight images."""
    with LocalRuntime(gpu=False, threads=1, listen=lambda _: None) as runtime:
        found: dict[str, Any] = {}
        for pattern in patterns.split():
            model = made(pattern)
            parallel = runtime.parallel(model)
            assert isinstance(parallel, DistributedDataParallel | type(model))
            outputs = parallel(images(8).chunk(runtime.world_size)[runtime.rank])
            (loss(outputs) * runtime.world_size / 8).backward()
            found[pattern] = [p.grad.flatten()[:20].tolist() for p in model.parameters() if p.grad is not None]
        return [found]


def test_gradients_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    one, two = (
        values(Group(tmp_path / str(world_size), world_size, reduced, " ".join(PATTERNS)).wait())[0][0]
        for world_size in (1, 2)
    )
    for pattern in PATTERNS:
        for a, b in zip(one[pattern], two[pattern], strict=True):
            assert a == pytest.approx(b, rel=1e-9, abs=1e-9), pattern


def test_synchronised_batch_norm_reaches_every_copy() -> None:
    for pattern in PATTERNS:
        model = apply_policy(made(pattern, norm="batch"), "sync", 4)
        kinds = {type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        assert kinds == {nn.SyncBatchNorm}
