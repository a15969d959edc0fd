"""Packs: trials on frozen features that train together, what they learn side by side.

A step on frozen features makes thousands of tiny calls, and P trials at once need hardly more than one
(`captune.equations.packed`). So do margins, counts and remembered features between epochs; batches and boards stay with
each trial's own algorithm. A trial's numbers do not depend on which others stand beside it.

A pack lives as long as the same trials train together. On a GPU its step is recorded once, as a CUDA graph that reads
an epoch's inputs from fixed places; packs run side by side there, each on a stream of its own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captune.data.views import upload
from captune.training.optim import Sgd
from captune.training.pack_sizes import SIZE_ON_A_GPU
from captune.training.step import Batch, GraphStep

_T = TypeVar("_T")
_ALIGNED = 16
"""Learned tensors begin at multiples of so many numbers: products may round otherwise where memory is not aligned."""


class PackedSteps(Protocol):
    """What a pack does for several algorithms at once; tensors of a step have P entries."""

    @property
    def in_fixed_places(self) -> bool:
        """Whether all that `prepare` and `end` read and write keeps its place, so that a GPU may record them too."""

    def start(self) -> Batch:
        """The host's part of beginning the planned epoch; what `prepare` needs, on its way to the device."""

    def prepare(self, inputs: Batch) -> Batch:
        """The device's part: what the epoch's steps read, (S, P, …) each."""

    def step(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Losses (P,) of one step, and what to keep of it; the gradients are left in the stack.

        As an algorithm's `loss`, it never waits for the device and changes in place what it changes.
        """

    def moving_state(self) -> list[Tensor]:
        """Tensors that `step` and `end` update in place, apart from the gradients."""

    def end(self, inputs: Batch, seen: Batch) -> Batch:
        """Take stock of what the steps read and what was kept of them; what `figures` needs, (P, …), on the device."""

    def figures(self, number: int, told: Batch) -> dict[str, float]:
        """End the epoch of one algorithm, as its `end_epoch` does, with what `end` gave, now on the CPU."""


class Packable(Protocol):
    """An algorithm whose steps can be taken together with others'."""

    @property
    def classifier(self) -> nn.Module:
        """What is learned."""

    @property
    def moved_in_packs(self) -> list[str]:
        """Names of the learned tensors that `PackedSteps.step` gives a gradient; the others stay as they are."""

    def pack_key(self) -> Hashable | None:
        """What algorithms must have in common for the epoch they have planned; None where a step is not to be packed.

        Whether it is None must be known before the epoch is planned.
        """

    def plan_epoch(self, epoch: int) -> None:
        """Decide what the steps of epoch `epoch` read: all of `start_epoch` that is not done for several at once."""

    def packed(self, others: Sequence[Any], stack: LearnedStack) -> PackedSteps:
        """The steps of `others` (itself among them), whose keys are equal, epoch after epoch."""


class LearnedStack:
    """Learned tensors of P models of one shape side by side, with their gradients and momenta.

    The models' own parameters become views of it, so that all other code reads and writes them as before.

    Attributes:
        device: where they lie.
        num_models: those that are learned; rows behind them are copies of the last, whose results are not used.
        values: by name, (P, …), P at least `num_models`.
        gradients: by name, (P, …); whoever takes a step writes them.
    """

    def __init__(self, models: Sequence[nn.Module], optimizers: Sequence[Sgd], moved: Sequence[str]) -> None:
        """Room for the learned tensors of these names; `take_in` moves them here."""
        self._optimizers, self.num_models = list(optimizers), len(models)
        self.device = device = next(models[0].parameters()).device
        self._decay_P1, self._momentum_P1 = (
            torch.tensor([getattr(each, name) for each in self.filled(optimizers)], device=device)[:, None]
            for name in ("weight_decay", "momentum")
        )
        parameters = [dict(model.named_parameters()) for model in models]
        places = {name: place for place, name in enumerate(parameters[0])}
        starts, length = {}, 0
        for name in moved:
            starts[name] = length
            length += -(-parameters[0][name].numel() // _ALIGNED) * _ALIGNED
        num_rows = len(self.filled(models))
        # All of a model in one row: a step of SGD is a few operations, however many tensors there are.
        self._values_PT, self._gradients_PT, self._momenta_PT = (
            torch.zeros(num_rows, length, device=device) for _ in range(3)
        )
        named = [
            {
                name: flat_PT[:, start : start + parameters[0][name].numel()].view(-1, *parameters[0][name].shape)
                for name, start in starts.items()
            }
            for flat_PT in (self._values_PT, self._gradients_PT, self._momenta_PT)
        ]
        self.values, self.gradients = named[:2]
        # For every model: its own parameters, where they belong, and the place of the momentum with its optimiser.
        self._views = [
            [(own[name], named[0][name][row], named[2][name][row], places[name]) for name in moved]
            for row, own in enumerate(parameters)
        ]
        self.take_in()
        for flat_PT in (self._values_PT, self._momenta_PT):
            flat_PT[self.num_models :] = flat_PT[self.num_models - 1]

    def filled(self, each: Sequence[_T]) -> list[_T]:
        """What the rows of the stack have: that of each model, and of the last one again where rows are filled up."""
        missing = SIZE_ON_A_GPU - len(each) if self.device.type == "cuda" else 0
        return [*each, *[each[-1]] * missing]

    @torch.no_grad()
    def take_in(self) -> None:
        """Move here what does not lie here: all at first, later what was loaded or forgotten since."""
        for optimizer, views in zip(self._optimizers, self._views, strict=True):
            for parameter, value, momentum, place in views:
                if parameter.data_ptr() != value.data_ptr():
                    value.copy_(parameter)
                    parameter.data = value
                    parameter.grad = None
                known = optimizer.velocities[place]
                if known is not momentum:
                    # A model that has not moved yet starts from a momentum of 0, which gives what a first step gives.
                    momentum.zero_() if known is None else momentum.copy_(known)

    def hand_back(self) -> None:
        """Leave the momenta with the models' optimisers, and mark the parameters as changed."""
        for optimizer, views in zip(self._optimizers, self._views, strict=True):
            for parameter, _, momentum, place in views:
                optimizer.velocities[place] = momentum
                torch.autograd.graph.increment_version(parameter)

    @torch.no_grad()
    def descend(self, rates: Sequence[float]) -> None:
        """One step of each model's SGD from `gradients`, on a CPU."""
        rows = zip(self._optimizers, rates, self._values_PT, self._gradients_PT, self._momenta_PT, strict=True)
        for optimizer, rate, value_T, gradient_T, momentum_T in rows:
            torch._fused_sgd_(
                [value_T], [gradient_T], [momentum_T],
                weight_decay=optimizer.weight_decay, momentum=optimizer.momentum, lr=rate,
                dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
            )  # fmt: skip

    @torch.no_grad()
    def descend_at(self, rates_P: Tensor) -> None:
        """The same at learning rates (P,) that lie on the device, all models at once: for a GPU's recorded steps."""
        self._gradients_PT.addcmul_(self._values_PT, self._decay_P1)
        torch.addcmul(self._gradients_PT, self._momenta_PT, self._momentum_P1, out=self._momenta_PT)
        self._values_PT.addcmul_(self._momenta_PT, rates_P[:, None], value=-1)

    def moving_state(self) -> list[Tensor]:
        """What a step of SGD changes for good."""
        return [self._values_PT, self._momenta_PT]

    def finite(self) -> Tensor:
        """Whether all that a model has learned is finite, bool (P,)."""
        return torch.isfinite(self._values_PT).all(1)


class Rows:
    """A tensor of each of several algorithms side by side: (P, …), the algorithms' own views of it."""

    def __init__(self, owners: Sequence[object], name: str, filled: int = 0) -> None:
        """Room for the attribute `name` of all owners, and for `filled` more copies of the last one's."""
        self._owners, self._name = owners, name
        own = [getattr(owner, name) for owner in owners]
        self.all = torch.stack([*own, *[own[-1]] * filled])
        self._views = list(self.all[: len(owners)])

    def take_in(self) -> None:
        """Move here what does not lie here."""
        for owner, view in zip(self._owners, self._views, strict=True):
            own = getattr(owner, self._name)
            if own is not view:
                view.copy_(own)
                setattr(owner, self._name, view)


class _Work:
    """Some work of a pack, in the form in which a GPU records it (`captune.training.step`)."""

    def __init__(self, work: Callable[[Batch], Batch], moving: Callable[[], list[Tensor]]) -> None:
        self._work, self.moving_state = work, moving

    def loss(self, batch: Batch) -> tuple[Tensor, Batch]:
        """No loss, and what came of the work."""
        return torch.zeros(()), self._work(batch)

    def batch(self, step: int) -> Batch:
        """Nothing: a pack gives its work what it needs."""
        return {}


class Pack:
    """Some algorithms that train together, epoch after epoch.

    Args:
        algorithms: which, with equal keys; they have planned an epoch.
        optimizers: theirs.
        key: what they have in common.
    """

    def __init__(self, algorithms: Sequence[Packable], optimizers: Sequence[Sgd], key: Hashable) -> None:
        self._algorithms, self._key = list(algorithms), key
        models = [each.classifier for each in algorithms]
        self._stack = LearnedStack(models, optimizers, algorithms[0].moved_in_packs)
        self._steps = algorithms[0].packed(self._algorithms, self._stack)
        self._device = device = self._stack.device
        # What steps read and what is kept of them: (S, P, …) each, always in the same places.
        self._inputs: Batch = {}
        self._seen: Batch = {}
        self._told: Batch = {}
        self._totals_P = torch.zeros(len(self._stack.filled(models)), device=device)
        self._number = torch.zeros(1, dtype=torch.long, device=device)
        if device.type == "cuda":
            self._stream, self._done = torch.cuda.Stream(device), torch.cuda.Event()  # type: ignore[no-untyped-call]
        # A cycle of references would keep the pack's memory until garbage is collected.
        own: Pack = weakref.proxy(self)
        fixed = self._steps.in_fixed_places
        self._prepare = self._taken(lambda batch: own._steps.prepare(batch), list, recorded=fixed)
        self._step = self._taken(lambda batch: own._next_step(), lambda: own._moving_state(), recorded=True)
        self._end = self._taken(lambda batch: own._end_of_steps(), lambda: own._steps.moving_state(), recorded=fixed)

    def _taken(
        self, work: Callable[[Batch], Batch], moving: Callable[[], list[Tensor]], *, recorded: bool
    ) -> Callable[[Batch], Batch]:
        """The work as it is, or on a GPU recorded at its first call and replayed from then on."""
        if self._device.type != "cuda" or not recorded:
            return work
        graph = GraphStep(_Work(work, moving), [], self._stream)
        return lambda batch: graph(batch)[1]

    def is_of(self, algorithms: Sequence[object], key: Hashable) -> bool:
        """Whether it is the pack of these algorithms, in this order."""
        same = len(algorithms) == len(self._algorithms) and all(map(_same, algorithms, self._algorithms))
        return same and key == self._key

    @torch.no_grad()
    def run(self, rates_SP: NDArray[np.float64]) -> None:
        """Take an epoch's steps at these learning rates; on a GPU they are queued, and `outcome` waits for them."""
        self._stack.take_in()
        with self._apart():
            rates = np.stack(self._stack.filled(list(rates_SP.T)), axis=1).astype(np.float32)
            inputs = self._steps.start() | {"rates": upload(rates, self._device)}
            self._place(self._inputs, self._prepare(inputs) | {"rates": inputs["rates"]})
            self._totals_P.zero_()
            self._number.zero_()
            for rates_P in rates_SP.tolist():
                if self._device.type == "cuda":
                    self._step({})
                else:
                    self._next_step(rates_P)
            told = self._end({})
            num_models = self._stack.num_models
            self._told = {name: tensor[:num_models].to("cpu", non_blocking=True) for name, tensor in told.items()}
        self._stack.hand_back()

    def outcome(self) -> list[tuple[float, bool]]:
        """Each algorithm's sum of losses, and whether all it has learned is finite."""
        if self._device.type == "cuda":
            self._done.synchronize()
        return list(zip(self._told["total"].tolist(), self._told["finite"].tolist(), strict=True))

    def figures(self, number: int) -> dict[str, float]:
        """End the epoch of one algorithm; its figures."""
        return self._steps.figures(number, self._told)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """On a GPU on the pack's own stream; on a CPU with one thread."""
        if self._device.type != "cuda":
            # With several threads a product of one differs from one of several in its last bit; and it gains nothing.
            num_threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                yield
            finally:
                torch.set_num_threads(num_threads)
            return
        # Nothing waits for this stream but the host, in `outcome`: else the next pack would wait for this one.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
            self._done.record(self._stream)

    def _next_step(self, rates: Sequence[float] | None = None) -> Batch:
        """The next step of all, optimisers included; on a CPU at these rates, on a GPU at the inputs' own.

        It reads the inputs at place `_number` of the epoch and leaves what is kept of it there.
        """
        number = self._number
        if rates is None:
            read = {name: tensor.index_select(0, number)[0] for name, tensor in self._inputs.items()}
        else:
            place = int(number)
            read = {name: tensor[place] for name, tensor in self._inputs.items()}
        losses_P, seen = self._steps.step(read)
        if rates is None:
            self._stack.descend_at(read["rates"])
        else:
            self._stack.descend(rates)
        for name, tensor in seen.items():
            if name not in self._seen:
                self._seen[name] = tensor.new_empty(len(self._inputs["rates"]), *tensor.shape)
            self._seen[name].index_copy_(0, number, tensor[None])
        self._totals_P += losses_P
        number += 1
        return {}

    def _end_of_steps(self) -> Batch:
        told = self._steps.end(self._inputs, self._seen)
        return told | {"total": self._totals_P, "finite": self._stack.finite()}

    def _moving_state(self) -> list[Tensor]:
        """Everything that a step changes for good."""
        return [*self._stack.moving_state(), *self._steps.moving_state(), self._totals_P, self._number]

    def _place(self, places: Batch, tensors: Batch) -> None:
        """Copy to where these tensors always lie."""
        for name, tensor in tensors.items():
            if self._device.type != "cuda":
                places[name] = tensor
            elif name not in places:
                places[name] = tensor.clone()
            else:
                places[name].copy_(tensor)


def _same(first: object, second: object) -> bool:
    return first is second
