import copy
import inspect
import pickle
import re

import pytest

from mtl import errors
from mtl.errors import MtlError

CLASSES = [item for item in vars(errors).values() if inspect.isclass(item) and issubclass(item, MtlError)]


def test_message_of_one_sentence_is_just_that() -> None:
    assert str(MtlError("The disk is full.")) == "The disk is full."


def test_message_answers_every_question_on_a_line_of_its_own() -> None:
    error = MtlError("No recipe of that name.", got="shape", expected=["cifar10", "shapes"], do="Pick one.")
    assert str(error).splitlines() == [
        "No recipe of that name.",
        "  got:      shape",
        "  expected: ['cifar10', 'shapes']",
        "  do:       Pick one.",
    ]


@pytest.mark.parametrize("got", [0, False, "", 0.0])
def test_values_that_are_false_are_shown(got: object) -> None:
    assert str(MtlError("Bad.", got=got)) == f"Bad.\n  got:      {got}"


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("clone", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
def test_every_class_crosses_a_process_boundary_whole(kind: type[MtlError], clone: object) -> None:
    assert callable(clone)
    error = kind("What.", got=0, expected=(1, 2), do="Do.")
    twin = clone(error)
    assert type(twin) is kind
    assert (twin.what, twin.got, twin.expected, twin.do) == ("What.", 0, (1, 2), "Do.")
    assert str(twin) == str(error)


def test_docstring_draws_the_tree_as_it_is() -> None:
    drawn: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for indent, name in re.findall(r"^( +)([A-Z]\w+) {2,}\S", inspect.getdoc(errors) or "", re.MULTILINE):
        above = [(depth, parent) for depth, parent in above if depth < len(indent)]
        drawn[name] = above[-1][1] if above else None
        above.append((len(indent), name))
    actual = {kind.__name__: None if kind is MtlError else kind.__bases__[0].__name__ for kind in CLASSES}
    assert drawn == actual


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_is_final_or_has_subclasses(kind: type[MtlError]) -> None:
    assert getattr(kind, "__final__", False) != bool(kind.__subclasses__())
