"""One training step: eager, or on a GPU recorded once as a CUDA graph and replayed.

A step of CLIP with prompts is some two thousand small kernels; launching them one by one takes a host longer than a
large GPU takes to run them. A graph is launched whole. Its tensors have fixed places: a step's batch is copied into
them, and what the step changes for good it changes in place.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn

from captune.training.memory import is_out_of_memory

LOG = logging.getLogger(__name__)
Batch = dict[str, Tensor]
_WARM_UPS = 2


class Steps(Protocol):
    """What a step needs of an algorithm (`captune.training.loop.Algorithm`)."""

    def batch(self, step: int) -> Batch:
        """What the step reads."""

    def loss(self, batch: Batch) -> tuple[Tensor, Batch]:
        """The loss and what the algorithm wants to keep of the step."""

    def moving_state(self) -> list[Tensor]:
        """Tensors that `loss` updates in place."""


class EagerStep:
    """Loss and gradients by autograd, operation by operation."""

    def __init__(self, algorithm: Steps, parameters: list[nn.Parameter]) -> None:
        self._algorithm, self._parameters = algorithm, parameters

    def __call__(self, batch: Batch) -> tuple[Tensor, Batch]:
        """The detached loss and what is kept of the step; gradients lie in the parameters (None without any)."""
        loss, seen = self._algorithm.loss(batch)
        for parameter in self._parameters:
            parameter.grad = None
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), seen


class GraphStep:
    """As `EagerStep`, but recorded as a CUDA graph on the first batch and replayed for every batch of the same shapes.

    The recorded kernels are the eager ones, so replaying changes no mathematics. A step that cannot be recorded is run
    eagerly from then on, and the log says why.
    """

    def __init__(
        self, algorithm: Steps, parameters: list[nn.Parameter], stream: torch.cuda.Stream | None = None
    ) -> None:
        """A step of these parameters, recorded on `stream`: graphs that run side by side need streams of their own."""
        self._algorithm, self._parameters, self._stream = algorithm, parameters, stream
        self._eager = EagerStep(algorithm, parameters)
        self._shapes: dict[str, tuple[torch.Size, torch.dtype]] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch = {}
        self._loss, self._seen = torch.zeros(()), Batch()
        self._gradients: list[Tensor | None] = []
        self._unrecordable = False

    def __call__(self, batch: Batch) -> tuple[Tensor, Batch]:
        """As `EagerStep`; the loss is overwritten by the next call."""
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in batch.items()}
        if shapes != self._shapes and not self._unrecordable:
            self._shapes = shapes
            self._record(batch)
        if self._graph is None:
            return self._eager(batch)
        for name, tensor in batch.items():
            self._batch[name].copy_(tensor, non_blocking=True)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._loss, {name: tensor.clone() for name, tensor in self._seen.items()}

    def _record(self, batch: Batch) -> None:
        self._graph = None
        self._batch = {name: tensor.clone() for name, tensor in batch.items()}
        self._warm_up()
        graph, outside = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        for parameter in self._parameters:
            parameter.grad = None
        try:
            # Of a higher priority than the branches' streams, which fill what this one leaves free.
            first = self._stream or torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]
            with torch.cuda.graph(graph, stream=first, capture_error_mode="thread_local"):
                loss, seen = self._algorithm.loss(self._batch)
                if loss.requires_grad:
                    loss.backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            # Ending a recording that broke off raises as well, on top of what broke it, and leaves its stream behind.
            torch.cuda.set_stream(outside)
            for one in (error, error.__context__):
                if isinstance(one, RuntimeError) and is_out_of_memory(one):
                    raise one from None
            self._unrecordable = True
            LOG.warning("steps are not recorded as a CUDA graph: %s", str(error).splitlines()[0])
            return
        self._graph, self._loss, self._seen = graph, loss.detach(), {k: v.detach() for k, v in seen.items()}
        self._gradients = [parameter.grad for parameter in self._parameters]

    def _warm_up(self) -> None:
        """Let libraries choose their kernels and allocate before the recording; what the steps moved is put back."""
        moving = self._algorithm.moving_state()
        before = [tensor.clone() for tensor in moving]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._eager(self._batch)
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, value in zip(moving, before, strict=True):
            tensor.copy_(value)


def step_of(algorithm: Steps, parameters: list[nn.Parameter], *, recorded: bool) -> EagerStep | GraphStep:
    """Recorded on a GPU if `recorded`, eager elsewhere."""
    on_gpu = bool(parameters) and parameters[0].device.type == "cuda"
    return GraphStep(algorithm, parameters) if on_gpu and recorded else EagerStep(algorithm, parameters)


def batches_of(algorithm: Steps, num_steps: int, device: torch.device) -> Iterator[Batch]:
    """The batches of an epoch in order; on a GPU each is made on a stream of its own while earlier steps still run."""
    if device.type != "cuda":
        for step in range(num_steps):
            yield algorithm.batch(step)
        return
    main, side = torch.cuda.current_stream(device), _side_stream(device)
    side.wait_stream(main)
    done: list[torch.cuda.Event] = []
    for step in range(num_steps):
        if len(done) > 2:
            # The host is far ahead and the device has work queued: more batches would only fill memory.
            done.pop(0).synchronize()
        with torch.cuda.stream(side):
            batch = algorithm.batch(step)
        main.wait_stream(side)
        for tensor in batch.values():
            tensor.record_stream(main)
        yield batch
        done.append(main.record_event())


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which batches are made. Freed memory stays with its stream, so there is one for all epochs."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Branch:
    """A part of a step that does not wait for the parts before it: a stream of its own while a graph is recorded.

    Small kernels of one part then fill what another leaves free of a GPU. Elsewhere it changes nothing.
    """

    def __init__(self, device: torch.device) -> None:
        """A branch that begins where the current stream stands."""
        self._main: torch.cuda.Stream | None = None
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            self._main = torch.cuda.current_stream(device)
            self._own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._own.wait_stream(self._main)

    @contextmanager
    def run(self) -> Iterator[None]:
        """Run the body in the branch."""
        if self._main is None:
            yield
            return
        with torch.cuda.stream(self._own):
            yield

    def join(self, *tensors: Tensor) -> None:
        """Let the current stream wait for the branch, whose tensors it reads from now on."""
        if self._main is None:
            return
        current = torch.cuda.current_stream(self._own.device)
        current.wait_stream(self._own)
        for tensor in tensors:
            tensor.record_stream(current)
