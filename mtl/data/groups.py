"""Which class labels are coarser versions of which: found in the labels themselves, wherever they come from."""

from collections.abc import Mapping, Sequence

from mtl.data.example import Example
from mtl.data.manifest import Label, Manifest
from mtl.errors import DataError

Groups = dict[str, dict[str, tuple[int, ...]]]


def find_groups(examples: Sequence[Example], labels: Mapping[str, Label]) -> Groups:
    """For each label of kind `class` the labels with fewer classes that follow from it, and how.

    Returns:
        [fine][coarse]: for each class id of the fine label, that of the coarse one; -1 where no image has both.
    """
    sizes = {name: len(label.classes or ()) for name, label in labels.items() if label.kind == "class"}
    found: Groups = {}
    for fine, size in sizes.items():
        for coarse in sizes:
            if sizes[coarse] < size and (ids := _follows(examples, fine, coarse, size)):
                found.setdefault(fine, {})[coarse] = ids
    return found


def _follows(examples: Sequence[Example], fine: str, coarse: str, size: int) -> tuple[int, ...] | None:
    ids = [-1] * size
    for example in examples:
        key, value = example.labels[fine], example.labels[coarse]
        if isinstance(key, int) and isinstance(value, int):
            if ids[key] not in (-1, value):
                return None
            ids[key] = value
    return tuple(ids) if max(ids, default=-1) >= 0 else None


def groups_of(manifest: Manifest, fine: str, coarse: str) -> tuple[int, ...]:
    """For each class id of the label `fine`, that of `coarse`, or -1.

    Raises:
        DataError: one does not follow from the other, or the data set is older than this knowledge.
    """
    found = manifest.groups.get(fine, {})
    if coarse not in found:
        raise DataError(
            f"Label '{coarse}' of the data set {manifest.name} is not known to group the classes of '{fine}'.",
            got=f"groups of '{fine}': {', '.join(found) or 'none'}",
            expected="each class of the one in a single class of the other",
            do="mend the labels; a data set of version 1 does not say: write it again with jobs/prepare.py --overwrite",
        )
    return found[coarse]
