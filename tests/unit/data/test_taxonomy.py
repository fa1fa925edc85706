"""A taxonomy cut into groups, and the one of ImageNet that ships with the project."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.data.derivation import Derivation
from mtl.data.taxonomy import cut
from mtl.errors import ConfigError

IMAGENET = Path(__file__).resolve().parents[3] / "jobs" / "labels" / "imagenet-taxonomy.csv"

LEVELS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(" > ".join)
TREES = st.dictionaries(st.integers().map(str), LEVELS, min_size=2, max_size=60)


def tree(**sizes: int) -> dict[str, str]:
    """Classes below each path; levels are separated by '_'."""
    return {f"{path}{i}": path.replace("_", " > ") for path, size in sizes.items() for i in range(size)}


def test_the_largest_group_is_opened_first() -> None:
    names = tree(animal_bird=10, animal_fish=10, plant_tree=8)
    assert Counter(cut(names, 2).values()) == {"animal": 20, "plant": 8}
    assert Counter(cut(names, 3).values()) == {"bird": 10, "fish": 10, "plant": 8}


def test_branches_too_small_for_a_group_stay_together() -> None:
    names = tree(animal_dog=20, animal_eel=1, animal_fly=1, plant=20)
    assert Counter(cut(names, 4).values()) == {"dog": 20, "other animal": 2, "plant": 20}


def test_classes_that_hang_between_branches_stay_together() -> None:
    names = tree(animal=3, animal_bird=10, plant=10)
    assert Counter(cut(names, 3).values()) == {"bird": 10, "other animal": 3, "plant": 10}


def test_groups_that_end_alike_keep_their_whole_path() -> None:
    names = tree(animal_large=10, animal_small=10, plant_large=10, plant_small=10)
    assert set(cut(names, 4).values()) == {"animal > large", "animal > small", "plant > large", "plant > small"}


def test_a_level_without_branches_does_not_count() -> None:
    names = tree(thing_animal_bird=10, thing_animal_fish=10, thing_plant_tree=10)
    assert set(cut(names, 2).values()) == {"animal", "plant"}


@pytest.mark.parametrize(("names", "groups"), [(tree(animal=5), 2), (tree(animal=5, plant=5), 1)])
def test_nothing_to_cut(names: dict[str, str], groups: int) -> None:
    with pytest.raises(ConfigError, match="can not be cut"):
        cut(names, groups)


@given(names=TREES, groups=st.integers(2, 12))
def test_every_class_is_in_one_group_whatever_the_order_of_lines(names: dict[str, str], groups: int) -> None:
    try:
        found = cut(names, groups)
    except ConfigError:
        return
    assert found.keys() == names.keys()
    assert 2 <= len(set(found.values())) <= groups
    assert cut(dict(reversed(names.items())), groups) == found


def test_derived_from_a_file_of_paths(tmp_path: Path) -> None:
    path = tmp_path / "tree.csv"
    path.write_text("old,new\ncat,animal > mammal\ndog,animal > mammal\nowl,animal > bird\noak,plant > tree\n")
    assert Derivation.load(f"living=thing:{path}:2").names == {
        "cat": "animal",
        "dog": "animal",
        "owl": "animal",
        "oak": "plant",
    }
    assert Derivation.load(f"living=thing:{path}").names["owl"] == "animal > bird"


def test_imagenet_is_cut_into_thirty_groups_and_two() -> None:
    group = Derivation.load(f"group=fine:{IMAGENET}:30").names
    living = Derivation.load(f"living=fine:{IMAGENET}:2").names
    sizes = Counter(group.values())
    assert len(group) == len(living) == 890
    assert len(sizes) == 30
    assert max(sizes.values()) == 118
    assert Counter(living.values()) == {"non-living thing": 481, "living thing": 409}
    assert {living[name] for name in group if group[name] in ("dog", "bird", "other mammal")} == {"living thing"}


def test_the_file_is_what_the_hierarchy_says() -> None:
    source = Path(__file__).resolve().parents[4] / "shared" / "data" / "imagenet-hierarchy.json"
    if not source.is_file():
        pytest.skip("../shared/data/imagenet-hierarchy.json is not beside this checkout")
    hierarchy = json.loads(source.read_text())
    names: dict[str, str] = hierarchy["node_names"]
    sheet = io.StringIO(newline="")
    rows = csv.writer(sheet, lineterminator="\n")
    rows.writerow(["old", "new"])
    for item in hierarchy["classes"]:
        # Neither the root nor the class itself; of several names of a node the first.
        if levels := [names[node].partition(",")[0] for node in item["path"][1:-1]]:
            rows.writerow([item["wnid"], " > ".join(levels)])
    assert IMAGENET.read_text() == sheet.getvalue()
