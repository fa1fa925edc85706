"""Memory that ran out in a worker, told as what it is, with what helps. A restart would meet the same end."""

from collections.abc import Generator
from contextlib import contextmanager

import torch

from mtl.config import Config
from mtl.errors import ResourceError
from mtl.parts import micro_batch

HOST = (
    "set a smaller --max-micro-batch (gradients are accumulated, with the same result), a smaller "
    "--loader.prefetch-mb or --loader.memory none, or fewer workers on a machine"
)
"""What helps where a machine runs out of memory."""

_CPU_ALLOCATOR = "DefaultCPUAllocator"  # how torch begins, in a plain RuntimeError


@contextmanager
def attributed(config: Config, world_size: int) -> Generator[None]:
    """Around the training of one of `world_size` workers.

    Raises:
        ResourceError: memory ran out, of the GPU or of the process.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        gpu = isinstance(error, torch.OutOfMemoryError)
        if not (gpu or isinstance(error, MemoryError) or _CPU_ALLOCATOR in str(error)):
            raise
        samples, sizes = micro_batch(config, world_size), {config.augment.size_px, config.augment.evaluated_px}
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ResourceError(
            "The GPU's memory ran out." if gpu else "The memory of a worker ran out.",
            got=f"{samples} samples of {' or '.join(map(str, sorted(sizes)))} px in a forward pass; {said}",
            do=f"set --max-micro-batch {max(samples // 2, 1)}: gradients are accumulated, with the same result"
            if gpu
            else HOST,
        ) from error
