"""The processes of a run and what they add up together. Accelerate places and launches; nothing is wrapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn

from limbeck.errors import Interrupted, UserError
from limbeck.system.progress import doing

PATIENCE = timedelta(days=7)  # the others wait while the first process tokenises or evaluates
GONE = ("closed by peer", "reset by peer", "broken pipe")  # what a process hears of one that has ended


def usable(name: str, said: str, remedy: str) -> torch.device:
    """The device of this name, when a tensor can be made on it; `said` and `remedy` begin and end the error.

    Raises:
        UserError: there is none.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"{said} cannot be used here ({str(error).splitlines()[0].split('. ')[0]}); {remedy}") from None
    return device


@dataclass(frozen=True)
class World:
    """This process among its equals."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default=torch.device("cpu"))

    @staticmethod
    def join(device: str = "auto") -> World:
        """The world that `torchrun` or `accelerate launch` set up, or a world of one.

        Raises:
            UserError: there is no such device.
        """
        wanted = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        state = PartialState(cpu=wanted == "cpu", timeout=PATIENCE)
        if wanted == "cuda" and state.device is not None and state.device.type == "cuda":  # cpu where there is no GPU
            wanted = str(state.device)
        where = usable(wanted, f"train.device: {device}", "set it to auto or cpu")
        return World(state.process_index, state.num_processes, where)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def place(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Puts a model where this process computes, whole: every process holds all of it."""
        nn.Module.to(model, self.device, dtype)

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """The Euclidean norm of all tensors together, 0 for none."""
        return nn.utils.get_total_norm(list(tensors)) if tensors else torch.zeros(())

    def gathered(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state whole, on the processor of the first process: what a checkpoint holds. All ask together."""
        if not self.is_main:
            return {}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def total(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, in fp64."""
        if self.size == 1:
            return list(numbers)
        summed = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        with _heard():
            dist.all_reduce(summed)
        return summed.tolist()

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes; of equal shape in all."""
        if self.size == 1:
            return tensor
        summed = tensor.to(self.device, copy=True).contiguous()
        with _heard():
            dist.all_reduce(summed)
        return summed.to(tensor.device)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Adds up the gradients of all processes: one all-reduce (SUM) for each dtype, parameters in their order.

        A parameter that has a gradient in some process gets one in all.
        """
        if self.size == 1:
            return
        present = self.total([float(p.grad is not None) for p in parameters])
        wanted = [p for p, count in zip(parameters, present, strict=True) if count]
        for dtype in dict.fromkeys(p.dtype for p in wanted):
            some = [p for p in wanted if p.dtype == dtype]
            bucket = torch.cat([_gradient(p).flatten() for p in some])
            with _heard():
                dist.all_reduce(bucket)
            for parameter, summed in zip(some, bucket.split([p.numel() for p in some]), strict=True):
                parameter.grad = summed.view_as(parameter)

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes one after another; of equal shape in all."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with _heard():
            dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def leave() -> None:
        """Closes what `join` opened: a process that exits with its connections open may abort."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def wait(self) -> None:
        """Waits for all processes."""
        if self.size > 1:
            with _heard(), doing("waiting for the other processes"):
                dist.barrier()


@contextmanager
def _heard() -> Iterator[None]:
    """Says in one line that another process has ended, where a collective finds its connection closed.

    Raises:
        Interrupted: it has.
    """
    try:
        yield
    except RuntimeError as error:
        if any(said in str(error).lower() for said in GONE):
            raise Interrupted("another process of the run has ended; run it again to go on") from None
        raise


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
