"""Estimate what a trial and a study cost on this machine, by running a few short epochs."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from statistics import median

import torch

from captune.algorithms import member_config, method_named
from captune.algorithms.configs import BlendConfig
from captune.config import StudyConfig, TaskConfig, TrialConfig
from captune.cost.measure import matrix_rate, peak_bytes_of, seconds_of
from captune.cost.sample import SAMPLE, sampled_context
from captune.cost.stopwatch import Stopwatch
from captune.data.paradigms import Task
from captune.decisions.confirming import num_confirmed
from captune.training.context import Context
from captune.training.loop import Loop, train_together

_STEPS, _EPOCH_HOLDOUT = 2, 512
_ENOUGH_STEPS, _ENOUGH_SECONDS = 8, 2.0
# In larger packs a trial is hardly cheaper (analysis/measurements/packs.md), and every trial has to be built first.
_MOST_TIMED = 8
# GPU memory that a process takes beside its tensors, and the share of a card that fragmentation leaves usable.
_PROCESS_BYTES, _USABLE = 600_000_000, 0.9


@dataclass(frozen=True)
class TrialCost:
    """Seconds and bytes that one trial takes when it runs alone on this machine.

    Attributes:
        step_seconds: of a training step.
        epoch_seconds: of an epoch: its steps, margin, main samples and selection score.
        trial_seconds: of the start, all epochs and the final predictions.
        memory_bytes: peak memory of training and predicting (resident on a CPU, allocated on a GPU).
        prepare_seconds: of decoding and encoding every image, once per node; 0 if nothing has to be encoded.
        num_epochs: of a full trial; 0 for methods without training.
        halve: what to change to make it about half as expensive, one sentence each, the surest first.
    """

    step_seconds: float
    epoch_seconds: float
    trial_seconds: float
    memory_bytes: int
    prepare_seconds: float
    num_epochs: int
    halve: tuple[str, ...]

    @classmethod
    def mean(cls, costs: Collection[TrialCost]) -> TrialCost:
        """The mean trial of a study over several methods with equally many trials each.

        Memory and preparation are those of the most demanding method: images are prepared once for all methods.
        """

        def of(name: str) -> float:
            return sum(getattr(cost, name) for cost in costs) / len(costs)

        return cls(
            of("step_seconds"), of("epoch_seconds"), of("trial_seconds"), max(cost.memory_bytes for cost in costs),
            max(cost.prepare_seconds for cost in costs), round(of("num_epochs")), (),
        )  # fmt: skip

    def study_seconds(self, num_trials: float, *, concurrency: int = 1) -> float:
        """Wall-clock seconds of `num_trials` full trials, where each has its own cores or its own share of a GPU.

        Args:
            num_trials: full-length trials; a trial stopped at a third of its budget counts as a third.
            concurrency: trials at once.
        """
        return self.prepare_seconds + math.ceil(num_trials / concurrency) * self.trial_seconds

    def trials_on_card(self, card_bytes: int) -> int:
        """How many such trials fit on a card of `card_bytes` at the same time; 0 if not even one does."""
        return int(_USABLE * card_bytes // (self.memory_bytes + _PROCESS_BYTES))

    def sentences(
        self,
        study: StudyConfig,
        *,
        concurrency: int = 1,
        screen: TrialCost | None = None,
        both_roles: bool = False,
        num_methods: int = 0,
        card_bytes: int | None = None,
        budget_seconds: float | None = None,
        name: str = "A trial",
    ) -> tuple[str, ...]:
        """Sentences for the user: the cost of a trial, the highest cost of the study, and how to lower it.

        Args:
            study: its settings.
            concurrency: trials at once.
            screen: the cost of a screening trial, where the study screens.
            both_roles: whether confirmations run twice, once to be scored and once to be reported.
            num_methods: in a study over several methods, how many.
            card_bytes: memory of the GPU that trials share, if there is one.
            budget_seconds: time limit of the study, if it has one.
            name: what the first sentence calls a trial.
        """
        confirmed = num_confirmations(study, both_roles=both_roles, num_methods=num_methods)
        most = self.study_seconds(study.trials + confirmed, concurrency=concurrency)
        what = f"{study.trials} trials and {confirmed} confirmations"
        sentences = [self._trial_sentence(name)]
        cheaper = list(self.halve)
        if screen is not None:
            screening = screen.study_seconds(study.num_screen_trials, concurrency=concurrency) - screen.prepare_seconds
            most += screening
            what = f"{study.num_screen_trials} screening trials, {what}"
            sentences.append(screen._trial_sentence("A screening trial"))
            if screening > 0.25 * most:
                cheaper.insert(
                    0, f"--screen-trials {max(1, study.num_screen_trials // 2)}: the screen is "
                    f"{100 * screening / most:.0f} % of the study.",
                )  # fmt: skip
        stopped = " (ASHA stops many of the search early, so it will be less)" if study.scheduler == "asha" else ""
        sentences.append(f"The study: at most {_span(most)} for {what}, {concurrency} at a time{stopped}.")
        if budget_seconds is not None:
            spare = budget_seconds - most + study.trials * self.trial_seconds / concurrency
            fit = int(spare * concurrency / self.trial_seconds)
            sentences.append(_budget_sentence(budget_seconds, fit, study.trials, confirmed))
        if card_bytes is not None:
            sentences.append(self._card_sentence(card_bytes))
        return (*sentences, *(f"Cheaper: {sentence}" for sentence in cheaper))

    def _trial_sentence(self, name: str) -> str:
        first = f"; once per node {_span(self.prepare_seconds)} to decode and encode" if self.prepare_seconds else ""
        return (
            f"{name}: {_span(self.trial_seconds)} ({self.num_epochs} epochs of {_span(self.epoch_seconds)}, a step "
            f"{1000 * self.step_seconds:.0f} ms) and {self.memory_bytes / 1e9:.1f} GB, measured here{first}."
        )

    def _card_sentence(self, card_bytes: int) -> str:
        fit = self.trials_on_card(card_bytes)
        size = f"this card's {card_bytes / 1e9:.0f} GB"
        if fit == 0:
            return f"A trial does not fit into {size}: --micro-batch 8 or --precision bf16 needs less."
        if fit == 1:
            return f"One trial at a time fits into {size}."
        # Rounded down, so that Ray does not refuse the last of them.
        share = math.floor(1000 / fit) / 1000
        return (
            f"Up to {fit} trials fit into {size} beside each other (--gpus-per-trial {share:g}); they share its "
            "time as well, so try two first."
        )


def num_confirmations(study: StudyConfig, *, both_roles: bool = False, num_methods: int = 0) -> int:
    """Confirmation trials at most (`captune.decisions.confirming.num_confirmed`), if no configuration drops out.

    With `both_roles` each runs twice, once for its score and once for the report.
    """
    confirmed = num_confirmed(study.trials, study.confirm_top, num_methods)
    return confirmed * study.confirm_seeds * (2 if both_roles else 1)


def _budget_sentence(budget: float, fit: int, trials: int, confirmed: int) -> str:
    """A sentence about the `fit` trials for which a budget of `budget` seconds leaves time beside confirmations."""
    beside = f"{confirmed} confirmations"
    if fit < 1:
        return f"A budget of {_span(budget)} fits no trial beside {beside}: raise it, or lower --confirm-top."
    which = f", more than the {trials} that are asked for" if fit >= trials else f" of {trials}"
    return f"A budget of {_span(budget)} fits about {fit} trials{which}, and {beside}."


def cards() -> tuple[int, int]:
    """The number of GPUs of this machine and the memory of the first in bytes; (0, 0) without a GPU."""
    if not torch.cuda.is_available():
        return 0, 0
    return torch.cuda.device_count(), int(torch.cuda.get_device_properties(0).total_memory)


def estimate_trial_cost(
    task_config: TaskConfig,
    trial_config: TrialConfig,
    method: str,
    *,
    device: str = "auto",
    advice: bool = True,
    packed: int = 1,
) -> TrialCost:
    """Measure a few real training steps of a configuration and calculate from them what a trial costs.

    No image store is built: only a sample of the image files is decoded, into a temporary store. Mismatch detection is
    left out, because a process runs it once for all its trials.

    Args:
        task_config: the cell.
        trial_config: the method's configuration.
        method: a key of ALGORITHMS.
        device: auto, cpu, cuda.
        advice: also measure what would make the trial cheaper.
        packed: number of trials that a worker trains together, if the method allows it (`captune.training.packs`). Each
            is given an equal part of their time; the memory is that of all together.

    Raises:
        UsageError: no such method or dataset.
        DataError, ModelError: the cell cannot be opened.
    """
    spec = method_named(method)
    with sampled_context(task_config, device) as (context, prepare_seconds):
        parts = _measure(context, trial_config, method, packed)
        halve = _advice(context, trial_config, parts, method) if advice else ()
    return TrialCost(
        step_seconds=parts.step,
        epoch_seconds=parts.epoch(trial_config, context.task),
        trial_seconds=parts.trial(trial_config, context.task, spec.num_epochs(trial_config)),
        memory_bytes=parts.memory,
        prepare_seconds=prepare_seconds,
        num_epochs=spec.num_epochs(trial_config),
        halve=halve,
    )


@dataclass(frozen=True)
class _Parts:
    build: float
    step: float
    bookkeeping: float
    predict: float  # per image
    memory: int

    def epoch(self, config: TrialConfig, task: Task) -> float:
        scored = len(task.validation.indices_N) or min(len(task.holdout), _EPOCH_HOLDOUT)
        return config.steps_per_epoch * self.step + self.bookkeeping + scored * self.predict

    def finish(self, task: Task) -> float:
        # Held-out images are predicted from a weak and from a strong view.
        return (len(task.test) + 2 * len(task.holdout) + len(task.validation.indices_N)) * self.predict

    def trial(self, config: TrialConfig, task: Task, num_epochs: int) -> float:
        return self.build + num_epochs * self.epoch(config, task) + self.finish(task)


def _measure(context: Context, config: TrialConfig, method: str, packed: int = 1) -> _Parts:
    if not isinstance(config, BlendConfig):
        return _measure_one(context, config, method, packed)
    members = []
    for member in config.members:
        own = member_config(config, member, context.task.config)
        seeds = max(1, len(member.seeds))
        trained = seeds * method_named(member.method).num_epochs(own)
        # The seeds of a member train together in packs, as the trials of a search do.
        members.append((seeds, trained, _measure_one(context, own, member.method, min(seeds * packed, _MOST_TIMED))))
    epochs = max(1, method_named(method).num_epochs(config))
    return _Parts(
        build=sum(seeds * parts.build for seeds, _, parts in members),
        step=sum(trained * parts.step for _, trained, parts in members) / epochs,
        bookkeeping=sum(trained * parts.bookkeeping for _, trained, parts in members) / epochs,
        predict=sum(seeds * parts.predict for seeds, _, parts in members),
        memory=sum(seeds * parts.memory for seeds, _, parts in members),
    )


def _measure_one(context: Context, config: TrialConfig, method: str, packed: int = 1) -> _Parts:
    spec, device = method_named(method), context.device
    together = packed if spec.packs and context.packs and config.tuning == "features" else 1
    epochs = max(2, config.warmup_epochs)
    cut = config.with_values({"epochs": epochs, "steps_per_epoch": _STEPS})
    if "mismatched" in type(cut).model_fields:
        cut = cut.with_values({"mismatched": "none"})
    started = time.perf_counter()
    watches = [Stopwatch(spec.build(context, cut, seed), device) for seed in range(together)]
    build = (time.perf_counter() - started) / together
    watch = watches[0]
    memory, step, bookkeeping = 0, 0.0, 0.0
    if spec.num_epochs(config):
        loops = [Loop(each, cut, epochs, recorded=context.fast_steps) for each in watches]

        def epoch() -> None:
            for outcome in train_together(loops):
                if isinstance(outcome, Exception):
                    raise outcome

        # The first epoch warms up allocators and kernels. It alone shows the memory of steps that are recorded as a
        # CUDA graph, because replaying them allocates nothing.
        memory = peak_bytes_of(epoch, device)
        watch.steps.clear()
        started = time.perf_counter()
        memory = max(memory, peak_bytes_of(epoch, device))
        while len(watch.steps) < _ENOUGH_STEPS and time.perf_counter() - started < _ENOUGH_SECONDS:
            epoch()
        step = median(watch.steps)
        bookkeeping = sum(median(seconds[1:]) for seconds in (watch.start, watch.end, watch.around) if seconds)
    images = context.task.test[:SAMPLE]

    def predict() -> None:
        watch.predict(images)

    predict()
    memory = max(memory, peak_bytes_of(predict, device))
    return _Parts(build, step, bookkeeping, seconds_of(predict, device) / len(images), memory)


def _advice(context: Context, config: TrialConfig, parts: _Parts, method: str) -> tuple[str, ...]:
    num_epochs = method_named(method).num_epochs(config)
    if num_epochs == 0:
        return ()
    whole = parts.trial(config, context.task, num_epochs)
    sentences = [
        f"--epochs {max(1, num_epochs // 2)} (now {num_epochs}) or half of --steps-per-epoch halves the training; "
        "ASHA stops most trials earlier still."
    ]
    prompted = config.tuning == "prompts" and context.backbone is not None
    if prompted:
        frozen = _measure(context, config.with_values({"tuning": "features"}), method)
        seconds = frozen.trial(config, context.task, num_epochs)
        sentences.append(f"--tuning features: a trial takes {_span(seconds)} instead of {_span(whole)}.")
    if prompted and context.backbone is not None and context.backbone.precision == "fp32":
        slow, fast = (matrix_rate(kind, context.device, seconds=0.2).flops for kind in ("fp32", "bf16"))
        if fast > 1.3 * slow:
            sentences.append(
                f"--precision bf16: matrix products run {fast / slow:.1f} times as fast here; "
                "`captune bench` shows what it gains in a step."
            )
    if context.device.type == "cpu" and prompted:
        sentences.append("A GPU: none was found on this machine.")
    if parts.finish(context.task) > 0.3 * whole:
        share = parts.finish(context.task) / whole
        sentences.append(f"{100 * share:.0f} % of a trial is predicting {len(context.task.test)} test images, once.")
    return tuple(sentences)


def _span(seconds: float) -> str:
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
