"""A training step as one CUDA graph.

A step launches more than a thousand small kernels, and on a GPU launching them takes longer than running them. A graph
records the kernels of one step (losses, backward pass, loss scaling, update of the parameters) and launches them all at
once. It reads its inputs from tensors that stay where they are: images, labels, noise and learning rates.
"""
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

WARM_UP = 3  # steps before the capture, in which torch and its libraries allocate what they keep
CHECK_SCALE = 1.0  # of the losses while graph and eager step are compared: no gradient overflows
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-2}  # of the comparison, by the towers' dtype

Update = Callable[[Tensor, Tensor, dict[str, Tensor]], dict[str, Tensor]]


class Refused(Exception):
    """A step cannot be run as a graph; the message says why."""


class GraphedStep:
    """A training step that is launched as one CUDA graph.

    Before the first step the graph is compared with an eager step, and all that the two have changed is put back.
    A batch of another shape than the first is run eagerly.

    Args:
        update: does a step with images, labels and noise; returns the losses by name, scalars.
        optimizer, scaler, counter: what `update` changes; the parameters are the optimiser's.
        image, label, noise: a first batch.
        dtype: of the towers' matrix products.

    Raises:
        Refused: the step cannot be captured, or the graph computes something else than the eager step.
    """

    def __init__(self, update: Update, optimizer: Optimizer, scaler: torch.amp.GradScaler, counter: Tensor,
                 image: Tensor, label: Tensor, noise: dict[str, Tensor], dtype: torch.dtype):
        if not all(group.get("fused") for group in optimizer.param_groups):
            raise Refused(f"{type(optimizer).__name__} with these options has no fused kernel")
        self.update, self.optimizer, self.scaler, self.counter = update, optimizer, scaler, counter
        self.image, self.label = image.clone(), label.clone()
        self.noise = {name: draw.to(image.device) for name, draw in noise.items()}
        self.rates = [torch.tensor(float(group["lr"]), device=image.device) for group in optimizer.param_groups]
        self.names: list[str] = []
        self.losses = torch.empty(0)
        start, scale = [(tensor, tensor.detach().clone()) for tensor in self._changed()], scaler.state_dict()

        def outcome(step: Callable[[], None]) -> tuple[Tensor, Tensor]:
            """Do a step from the state at the start; return losses and gradients."""
            self._put_back(start, {**scale, "scale": CHECK_SCALE})
            step()
            return self.losses.clone(), torch.cat([parameter.grad.double().flatten() for parameter in self._parameters()
                                                   if parameter.grad is not None])

        try:
            with stream_of_its_own(image.device) as stream:
                for _ in range(WARM_UP):
                    expected = outcome(self._step)
                self.replay = capture(self._step, stream)
                found = outcome(self.replay)
        except RuntimeError as error:
            line = str(error).partition("\n")[0]
            raise Refused(f"a step could not be captured ({line})") from error
        finally:
            self._put_back(start, scale)
        largest = max(map(difference, found, expected))
        if largest > TOLERANCE[dtype]:
            raise Refused(f"its losses or gradients differ from an eager step's by {largest:.1e}, relatively")

    def __call__(self, image: Tensor, label: Tensor, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """Do a step as `update` does."""
        if image.shape != self.image.shape or image.dtype != self.image.dtype or noise.keys() != self.noise.keys():
            return self.update(image, label, noise)
        self.image.copy_(image)
        self.label.copy_(label)
        for name, draw in noise.items():
            self.noise[name].copy_(draw.pin_memory() if self.image.is_cuda else draw, non_blocking=True)
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(float(group["lr"]))
        self.replay()
        torch.autograd.graph.increment_version(list(self._parameters()))  # as an eager update does
        return dict(zip(self.names, self.losses.clone().unbind(), strict=True))  # the next replay overwrites them

    def _step(self) -> None:
        """Do a step from the static inputs, with rates that are read when it runs."""
        groups = self.optimizer.param_groups
        options: list[dict[str, Any]] = [{name: group[name] for name in ("lr", "capturable") if name in group}
                                         for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True
        try:
            losses = self.update(self.image, self.label, self.noise)
        finally:
            for group, before in zip(groups, options, strict=True):
                group.update(before)
        self.names, self.losses = list(losses), torch.stack(list(losses.values()))

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def _changed(self) -> Iterator[Tensor]:
        """Yield the tensors that a step changes, but for the scaler's."""
        yield from self._parameters()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
        yield self.counter

    @torch.no_grad()
    def _put_back(self, start: list[tuple[Tensor, Tensor]], scale: dict) -> None:
        """Restore the tensors as they were at the start; those that an optimiser has made since then start from 0."""
        before = {id(tensor): value for tensor, value in start}
        for tensor in self._changed():
            if id(tensor) in before:
                tensor.copy_(before[id(tensor)])
            else:
                tensor.zero_()
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(scale)
            self.scaler._per_optimizer_states.clear()  # a step that was broken off has left its stage there


def available(device: torch.device) -> bool:
    """Return whether a device has graphs."""
    return device.type == "cuda"


@contextlib.contextmanager
def stream_of_its_own(device: torch.device) -> Iterator[torch.cuda.Stream | None]:
    """Run the block's kernels on a new stream of a GPU: what was captured must not refer to the default stream."""
    if device.type == "cpu":
        yield None
        return
    stream, usual = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(usual)
    try:
        with torch.cuda.stream(stream):
            yield stream
    finally:
        usual.wait_stream(stream)


def capture(step: Callable[[], None], stream: torch.cuda.Stream | None) -> Callable[[], None]:
    """Capture what a function launches; return a function that launches it again."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):  # other threads read images
        step()
    return graph.replay


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference of two tensors, relative to the norm of the second; inf if not finite."""
    error = ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()
    return error if error == error else float("inf")
