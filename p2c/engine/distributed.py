"""Data-parallel training in several processes, as torchrun starts them.

Every process runs the same program on its shard of each batch, and gradients are averaged. Only the main process, of
rank 0, writes files and logs. With one process all of this does nothing.
"""
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun


def launched() -> bool:
    """Return whether torchrun started this process as one of several."""
    return all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def join(use_cuda: bool) -> None:
    """Join the process group if torchrun started several processes; with `use_cuda` each takes a GPU, if there are any.

    Raises:
        ValueError: this machine has fewer GPUs than processes.
    """
    if not launched() or dist.is_initialized():
        return
    gpus = torch.cuda.device_count() if use_cuda and torch.cuda.is_available() else 0
    if 0 < gpus < local_processes():
        raise ValueError(f"torchrun started {local_processes()} processes on this machine, which has {gpus} GPUs; give "
                         f"--nproc-per-node {gpus}")
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")


def leave() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_processes() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if launched() else 1


def is_main() -> bool:
    """Return whether this is the main process, which writes files and logs."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes get here."""
    if processes() > 1:
        from_main(lambda: None)


@contextlib.contextmanager
def first_on_each_machine() -> Iterator[None]:
    """Let one process of each machine run the block before the others, to download or create what they then find."""
    ahead = processes() == 1 or os.environ["LOCAL_RANK"] == "0"
    if not ahead:
        barrier()
    try:
        yield
    finally:
        if ahead:
            barrier()


# Communication


def from_main(function: Callable):
    """Call `function` in the main process and return its result in all."""
    if processes() == 1:
        return function()
    result = [function() if is_main() else None]
    dist.broadcast_object_list(result, src=0)
    return result[0]


def any_process(flag: bool) -> bool:
    """Return whether a flag is set in any process."""
    return bool(average(torch.tensor(float(flag))))


def average(numbers: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes."""
    if processes() > 1:
        dist.all_reduce(numbers)
        numbers /= processes()
    return numbers


def gather(batches: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the batches of all processes, rank by rank, in the main process; nothing in the others."""
    if processes() == 1:
        yield from batches
        return
    mine = [tuple(tensor.cpu() for tensor in batch) for batch in batches]
    gathered: list = [None] * processes() if is_main() else []
    dist.gather_object(mine, gathered or None)
    for theirs in gathered:
        yield from theirs


def parallel(module: nn.Module, some_unused: bool) -> nn.Module:
    """Wrap a module so that its gradients are averaged over all processes; with one process return it as it is.

    Frozen parameters and buffers are not synchronised: they are the same in all processes.

    Args:
        some_unused: whether some trainable parameters do not contribute to the output.
    """
    if processes() == 1:
        return module
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    frozen = [name for name, _ in [*module.named_parameters(), *module.named_buffers()] if name not in trained]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, frozen)
    return DistributedDataParallel(module, find_unused_parameters=some_unused)


def shard(items: Sequence) -> Sequence:
    """Return this process's shard of some items: contiguous, and at most 1 longer than any other."""
    return items[len(items) * rank() // processes():len(items) * (rank() + 1) // processes()]
