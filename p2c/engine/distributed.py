"""Several processes that train one model, as torchrun starts them: what each does, and what only one of them does.

Every process runs the same program on its part of each batch, and gradients are averaged; the first one (rank 0) alone
writes files and lines. With one process all of this does nothing.
"""
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def join(use_cuda: bool) -> None:
    """Meet the other processes, if there are any; with `use_cuda` each takes a GPU of its own, where there are GPUs.

    Raises:
        ValueError: fewer GPUs than processes on this machine.
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
    """End what `join` began."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_processes() -> int:
    """How many of them run on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if launched() else 1


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes to come here."""
    if processes() > 1:
        from_main(lambda: None)


@contextlib.contextmanager
def first_on_each_machine() -> Iterator[None]:
    """One process of each machine goes ahead, the others follow: for what is fetched or made once and then found."""
    ahead = processes() == 1 or os.environ["LOCAL_RANK"] == "0"
    if not ahead:
        barrier()
    try:
        yield
    finally:
        if ahead:
            barrier()


# Exchange


def from_main(function: Callable):
    """What `function` returns in the main process, which alone calls it."""
    if processes() == 1:
        return function()
    result = [function() if is_main() else None]
    dist.broadcast_object_list(result, src=0)
    return result[0]


def anywhere(flag: bool) -> bool:
    """Whether a flag is set in any of the processes."""
    if processes() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags)
    return bool(flags)


def average(numbers: Tensor) -> Tensor:
    """The mean over all processes of a tensor that each of them has."""
    if processes() > 1:
        dist.all_reduce(numbers)
        numbers /= processes()
    return numbers


def collect(batches: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """The batches of all processes, in the order of the ranks, for the main process; none for the others."""
    if processes() == 1:
        yield from batches
        return
    mine = [tuple(tensor.cpu() for tensor in batch) for batch in batches]
    everybodys = [None] * processes() if is_main() else None
    dist.gather_object(mine, everybodys)
    for theirs in everybodys or ():
        yield from theirs


def parallel(module: nn.Module, some_unused: bool) -> nn.Module:
    """Return a module whose gradients are averaged over all processes; with one process the module itself.

    Frozen parameters and buffers are left alone: they are the same in all processes.

    Args:
        some_unused: whether parameters that train have no part in what it returns.
    """
    if processes() == 1:
        return module
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    frozen = [name for name, _ in [*module.named_parameters(), *module.named_buffers()] if name not in trained]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, frozen)
    return DistributedDataParallel(module, find_unused_parameters=some_unused)


# Shares


def share(size: int) -> range:
    """This process's part of `size` things in order: the parts follow each other and differ by one at most."""
    return range(size * rank() // processes(), size * (rank() + 1) // processes())


class PartOfAll(Sampler):
    """This process's part of what a sampler gives, each index once over all processes."""

    def __init__(self, sampler: Sampler):
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        indices = list(self.sampler)
        return iter([indices[position] for position in share(len(indices))])

    def __len__(self) -> int:
        return len(share(len(self.sampler)))


class PartOfBatches(Sampler):
    """This process's part of each batch of `batch_size` that a sampler's indices make.

    A last, smaller batch is left out, unless it is the only one.

    Raises:
        ValueError: batches that the processes do not divide.
    """

    def __init__(self, sampler: Sampler, batch_size: int):
        self.sampler = sampler
        self.batch_size = min(batch_size, len(sampler))
        if self.batch_size % processes():
            key = "DATALOADER.TRAIN_X.BATCH_SIZE" if self.batch_size == batch_size else "The number of training images"
            raise ValueError(f"{key} is {self.batch_size}, which {processes()} processes cannot divide equally; choose "
                             "a multiple, or another number of processes (torchrun --nproc-per-node)")

    def set_epoch(self, epoch: int | str) -> None:
        """Hand on which epoch begins, if the sampler asks for it."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        batch = []
        for index in self.sampler:
            batch.append(index)
            if len(batch) == self.batch_size:
                yield [batch[position] for position in share(len(batch))]
                batch = []

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size
