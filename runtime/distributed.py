"""Several processes at one run, as torchrun starts them. In any other process all of this does nothing, at no cost.

    torchrun --nproc-per-node 2 -- train.py --recipe coco --data photos/ --run runs/coco

Processes differ in their `rank`: each trains on its share of every batch, 0 also writes and speaks. Gradients are
averaged by DDP, over gloo between CPUs and nccl between GPUs. docs/scale.md says how machines are joined.

Source: torch_utils/distributed.py of EDM2, Karras et al., arXiv 2312.02696.
"""

import gc
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from config import UserError
from runtime import progress

T = TypeVar("T")
# Others wait while one decodes a data set. A process that dies is noticed at once all the same, by torchrun.
TIMEOUT = timedelta(days=1)
LOST_MESSAGE = "another process of this run was killed, or its machine is gone; go on with --resume"
LOST_FIRST_MESSAGE = "process 0 is gone: killed, or after an error that it or another has told; go on with --resume"


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started with this one. Where some fail, the first alone says why.

    Where process 0 is gone with what it kept for all, one of each machine says so.

    Raises:
        SystemExit: this process failed after another, mostly because of it.
        UserError: this is the first that noticed that another is gone without a word.
    """
    # functions of nn have the group there is when it is imported as a default, and so would keep it and its threads,
    # which may abort a process that ends
    importlib.import_module("torch.distributed.nn")
    from torch.distributed.rendezvous import rendezvous  # which not every torch has

    store, rank, world = next(rendezvous("env://", timeout=TIMEOUT))
    # on one machine torchrun keeps the store over a restart, with the addresses of before; several count restarts apart
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ["GROUP_WORLD_SIZE"] == "1":
        store = dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    if rank:
        sys.stdout = open(os.devnull, "w")
        progress.be_silent()
    try:
        yield
    except Exception as error:
        is_lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        message = LOST_MESSAGE
        try:
            is_first = store.add("failed", 1) == 1
        except dist.DistError:  # gone with process 0, which had it, and is the first of its machine
            speaker = 1 if os.environ["GROUP_RANK"] == "0" else 0
            is_first = is_lost and local_rank() == speaker
            message = LOST_FIRST_MESSAGE
        if not is_first:
            raise SystemExit(2 if isinstance(error, UserError) else 1) from None
        if is_lost:
            raise UserError(message) from error
        raise
    finally:
        dist.destroy_process_group()
        gc.collect()  # of shared networks, which keep the group and its threads


def is_joined() -> bool:
    """Tell whether torchrun started this process."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return which of the processes this is, from 0."""
    return dist.get_rank() if is_joined() else 0


def world() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if is_joined() else 1


def local_rank() -> int:
    """Return which of the processes of this machine this is, from 0."""
    return int(os.environ["LOCAL_RANK"]) if is_joined() else 0


def wait() -> None:
    """Wait until every process is here."""
    if is_joined():
        dist.barrier()


@contextmanager
def in_turn() -> Iterator[None]:
    """Let one process of every machine pass first; the others find what it made: a cache, a download."""
    if local_rank():
        wait()
    try:
        yield
    finally:
        if not local_rank():
            wait()


def gather(value: T) -> list[T]:
    """Return what each process gave, in the order of ranks."""
    if not is_joined():
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def add(values: Tensor) -> Tensor:
    """Return the sum over all processes, in place."""
    if is_joined():
        dist.all_reduce(values)
    return values


def vary_seed(seed: int) -> None:
    """Give torch's generators of every process but the first a seed of their own, that follows from `seed`."""
    if rank():
        torch.manual_seed(seed + 7919 * rank())


def require_same(facts: Mapping[str, object]) -> None:
    """Raise UserError in every process where a fact of one is not what it is in the first."""
    first, *others = gather(dict(facts))
    for number, theirs in enumerate(others, 1):
        for key, value in first.items():
            if theirs.get(key) != value:
                difference = f"process {number} has {key} {theirs.get(key)}, process 0 has {value}"
                raise UserError(f"{difference}: start all with the same options, on the same data")


def averaging(network: nn.Module) -> nn.Module:
    """Return a network through which a forward has gradients that are the mean over all processes.

    Buffers are not broadcast at each forward: a discriminator sees true and generated images before one backward,
    which then would find BatchNorm's statistics overwritten. `average_buffers` evens them out after the step.
    SyncBatchNorm would do too, but only on GPUs, and waits for the others in every layer.
    """
    if not is_joined():
        return network
    shared = DistributedDataParallel(network)
    shared.broadcast_buffers = False  # the argument of this name is deprecated since torch 2.13
    return shared


def average_buffers(*networks: nn.Module | None) -> None:
    """Let the statistics of BatchNorm be the mean over all processes, so that networks are the same in each."""
    if not is_joined():
        return
    buffers = [each for network in networks if network is not None for each in network.buffers()]
    buffers = [each for each in buffers if each.is_floating_point()]
    if buffers:
        means = add(torch.cat([each.flatten() for each in buffers])) / world()
        for each, mean in zip(buffers, means.split([each.numel() for each in buffers]), strict=True):
            each.copy_(mean.view_as(each))


class Agreed:
    """The largest number that any process gives, known to all at the same call: the next, so that none has to wait."""

    def __init__(self) -> None:
        self.pending: tuple[Tensor, dist.Work] | None = None

    def __call__(self, number: int = 0) -> int:
        """Give a number; returns the largest of the call before, or the number itself where there is one process."""
        if not is_joined():
            return number
        before, given = self.pending, torch.tensor([number])
        self.pending = given, dist.all_reduce(given, dist.ReduceOp.MAX, async_op=True)
        if before is None:
            return 0
        before[1].wait()
        return int(before[0])

    def finish(self) -> None:
        """Wait for what is under way: a process that ends within it aborts."""
        if self.pending is not None:
            self.pending[1].wait()
