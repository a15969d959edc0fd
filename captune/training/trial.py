"""One trial, without Ray: open (or go on), run epochs, finish with predictions and a checkpoint."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from captune.config import TaskConfig, TrialConfig
from captune.data.paradigms import IntArray
from captune.decisions.criteria import CRITERIA, resolve_criterion
from captune.errors import CheckpointError, TrainingFailed
from captune.metrics import balance
from captune.records import Role, atomic_write
from captune.records.layout import CHECKPOINT, CONFIG, EPOCHS, PREDICTIONS, RESUME
from captune.seeding import torch_generator
from captune.training.checkpoint import load_checkpoint, save_checkpoint
from captune.training.context import Context, open_context
from captune.training.loop import AlgorithmSpec, Loop, final_tensors, train_together
from captune.training.memory import free_memory, is_out_of_memory, out_of_memory_explained
from captune.training.parts import num_parameters, training_of
from captune.training.pool_evidence import POOL_PROBS, evidence_images
from captune.training.scoring import gain_errors, judged_images, selection_scores

# A checkpoint costs some ten milliseconds, a tenth of a short epoch on frozen features: those share one.
SAVE_SECONDS = 1.0
# Enough for a score to steer the scheduler; the final score uses every held-out image.
_EPOCH_HOLDOUT = 512
# Fewer images may all be of one class by chance.
_FEWEST_TO_COLLAPSE = 8


class TrainingTrial:
    """A configuration trained once with one seed, in a directory of its own.

    Its state is kept in `resume.safetensors`, which is replaced whole after every epoch, or after every second of
    training where epochs are shorter. A killed trial goes on from there and loses at most that epoch or second. Its
    numbers are those of a trial that was never killed. A trial that runs out of memory goes on from there too, once,
    with micro-batches: the same mathematics with fewer activations at a time.
    """

    def __init__(
        self,
        context: Context,
        algorithm: AlgorithmSpec,
        config: TrialConfig,
        *,
        seed: int,
        directory: Path,
        role: Role,
        select_by: str,
    ) -> None:
        self.context = context
        self.config = config
        self.seed = seed
        self.directory = directory
        self.role: Role = role
        self.method = algorithm.name
        self.criterion = resolve_criterion(select_by, context.task.config.paradigm)
        self.num_epochs = algorithm.num_epochs(config)
        self._algorithm_spec = algorithm
        self._in_micro_batches = False
        self._unsaved_seconds = 0.0
        self._build()

    @classmethod
    def open(
        cls,
        task_config: TaskConfig,
        trial_config: TrialConfig,
        *,
        algorithm: AlgorithmSpec,
        seed: int,
        directory: Path,
        role: Role = Role.SCORE,
        device: str = "auto",
        select_by: str = "auto",
    ) -> Self:
        """A trial at its start, or where its last checkpoint left it.

        Raises:
            DataError, ModelError: the cell cannot be opened.
            CheckpointError: the directory holds a checkpoint of another configuration.
            TrainingFailed: the frozen model alone does not fit into memory.
        """
        with out_of_memory_explained():
            context = open_context(task_config, role, device)
            trial = cls(
                context, algorithm, trial_config, seed=seed, directory=directory, role=role, select_by=select_by
            )
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / RESUME).exists():
            trial._resume()
        else:
            atomic_write(directory / CONFIG, trial_config.to_yaml())
            (directory / EPOCHS).unlink(missing_ok=True)
        return trial

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""
        return self.training.epoch

    @property
    def trained(self) -> bool:
        """Whether all epochs are trained."""
        return self.epoch >= self.num_epochs

    def run_epoch(self) -> dict[str, Any]:
        """Train an epoch, score it, save now and then; returns the epoch's record (and appends it to epochs.jsonl).

        Raises:
            TrainingFailed: not finite, collapsed to one class, or too large for the memory even in micro-batches.
        """
        return self._within_memory(self._run_epoch)

    def _run_epoch(self) -> dict[str, Any]:
        started = time.perf_counter()
        loops = self.training.due
        (figures,) = train_together([self.training])
        if isinstance(figures, Exception):
            raise figures
        return self._record_epoch(figures, loops, time.perf_counter() - started)

    def _record_epoch(self, figures: dict[str, float], loops: Sequence[Loop], seconds: float) -> dict[str, Any]:
        """Score, write down and now and then save an epoch that these loops took `seconds` to train."""
        started = time.perf_counter()
        scores = self._epoch_scores()
        seconds += time.perf_counter() - started
        record = {
            "epoch": self.epoch,
            "fidelity": self.epoch / self.num_epochs,
            "score": scores.get(self.criterion),
            "scores": scores,
            **figures,
            "images": sum(loop.config.steps_per_epoch * loop.config.batch_size for loop in loops)
            * (3 if len(self.context.task.labelled.indices_N) else 2),
            "seconds": seconds,
        }
        if self._in_micro_batches:
            record["micro_batch"] = self.config.micro_batch
        # The row first: a kill before the checkpoint leaves rows that the resumed epochs write again, identical.
        with (self.directory / EPOCHS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        # Save now if one more epoch of this length would put more than SAVE_SECONDS of work at risk.
        self._unsaved_seconds += seconds
        if self.trained or self._unsaved_seconds + seconds >= SAVE_SECONDS:
            self.save()
        return record

    def save(self) -> None:
        """Write the state from which the trial can be resumed."""
        save_checkpoint(self.directory / RESUME, self.training.state(), self._identity())
        self._unsaved_seconds = 0.0

    def finish(self) -> dict[str, Any]:
        """Predict the test and held-out images, write predictions and checkpoint; returns the trial's outcome.

        Predictions are stored sealed: nothing here compares them with a test or pool label.

        Raises:
            TrainingFailed: the adapted model predicts one class for every held-out or test image, where the frozen one
                does not, or it does not fit into the memory.
        """
        return self._within_memory(self._finish)

    def _collapsed(self, probs_NK: Tensor, images: IntArray) -> bool:
        """Whether all of these images have become one class, of which the frozen model sees less than half of them.

        A person's images may all be of one class, and a handful may look so: that is an answer, no collapse.
        """
        first = probs_NK[0].argmax() if len(probs_NK) else None
        if first is None or len(probs_NK) < _FEWEST_TO_COLLAPSE or not bool((probs_NK.argmax(-1) == first).all()):
            return False
        frozen_N = self.context.zero_shot_logits(images).argmax(-1)
        return float((frozen_N == first.to(frozen_N.device)).float().mean()) < 0.5

    def _finish(self) -> dict[str, Any]:
        task = self.context.task
        test_NK = self._algorithm.predict(task.test)
        holdout_NK = self._algorithm.predict(task.holdout)
        seen = holdout_NK if len(holdout_NK) else test_NK
        if self.num_epochs and self._collapsed(seen, task.holdout if len(holdout_NK) else task.test):
            raise TrainingFailed(
                "predictions must not collapse to one class",
                got=f"class '{task.class_names[int(seen[0].argmax())]}' for all {len(seen)} images",
                next_step="Lower learning_rate, or raise confidence_threshold.",
            )
        validation = task.validation.indices_N if self.role == Role.SCORE else task.validation.indices_N[:0]
        validation_NK = self._algorithm.predict(validation)
        scores = self._scores(holdout_NK, validation_NK)
        tensors = {
            "test_probs": test_NK.half(),
            "holdout_probs": holdout_NK.half(),
            "validation_probs": validation_NK.half(),
        }
        if self.role == Role.SCORE:
            tensors[POOL_PROBS] = self._unlabelled_probs(holdout_NK).half()
        if self.context.unreadable:  # else the task alone tells which images these are
            tensors["test_images"] = torch.tensor(task.test)
        atomic_write(
            self.directory / PREDICTIONS,
            safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}),
        )
        self._save_final()
        # The search maximises it, so it is computed on the held-out images where there are any.
        counts_K = np.bincount(seen.argmax(-1).cpu().numpy(), minlength=task.num_classes)
        return {
            "score": scores.get(self.criterion),
            "scores": scores,
            "gain_errors": {} if self.role == Role.REPORT else gain_errors(self.context, holdout_NK, validation_NK),
            "prediction_balance": balance(counts_K),
            "num_parameters": num_parameters(self._algorithm),
        }

    def _unlabelled_probs(self, holdout_NK: Tensor) -> Tensor:
        """Probabilities of the images that the advice compares candidates on; held-out ones are predicted already."""
        images, holdout = evidence_images(self.context.task), self.context.task.holdout
        held_out = np.isin(images, holdout)
        probs_NK = holdout_NK.new_empty(len(images), self.context.task.num_classes)
        probs_NK[torch.from_numpy(held_out)] = holdout_NK[np.searchsorted(holdout, images[held_out])]
        probs_NK[torch.from_numpy(~held_out)] = self._algorithm.predict(images[~held_out])
        return probs_NK

    def _build(self) -> None:
        self._algorithm = self._algorithm_spec.build(self.context, self.config, self.seed)
        self.training = training_of(self._algorithm, self.config, self.num_epochs, recorded=self.context.fast_steps)

    def _within_memory(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if not self._in_micro_batches:
            try:
                return work()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # Only now: while the error was held, its frames kept the tensors of the failed step in memory.
            self._go_on_in_micro_batches()
        with out_of_memory_explained():
            return work()

    def _go_on_in_micro_batches(self) -> None:
        """Build the trial again from its last checkpoint, with a quarter of the images at once."""
        at_once = self.config.micro_batch or self.config.batch_size
        self.config = self.config.with_values({"micro_batch": max(1, at_once // 4)})
        self._in_micro_batches = True
        del self._algorithm, self.training
        free_memory()
        with out_of_memory_explained():
            self._build()
            if (self.directory / RESUME).exists():
                self._resume()

    def _epoch_scores(self) -> dict[str, float]:
        if self.role == Role.REPORT:
            return {}
        validation_NK = self._algorithm.predict(self.context.task.validation.indices_N)
        # A criterion of labels alone needs no pass over the held-out pool.
        rows = 0 if self.criterion in ("val", "pseudo-unseen") else _EPOCH_HOLDOUT
        holdout_NK = self._algorithm.predict(self.context.task.holdout[:rows])
        diagnostics = CRITERIA[self.criterion].diagnostic
        scores = selection_scores(self.context, holdout_NK, validation_NK, diagnostics=diagnostics)
        shown = dict.fromkeys((self.criterion, "agree-balanced", "agree-zero-shot"))
        return {name: scores[name] for name in shown if name in scores}

    def _scores(self, holdout_NK: Tensor, validation_NK: Tensor) -> dict[str, float]:
        if self.role == Role.REPORT:
            return {}
        strong_NK = self._strong_view_probs(judged_images(self.context.task))
        return selection_scores(self.context, holdout_NK, validation_NK, strong_NK=strong_NK, clustered=True)

    def _strong_view_probs(self, indices: IntArray) -> Tensor | None:
        predict_strong = getattr(self._algorithm, "predict_strong", None)
        if predict_strong is None:
            return None
        probs: Tensor = predict_strong(indices, torch_generator(self.seed, "stability"))
        return probs

    def _identity(self) -> dict[str, Any]:
        backbone = self.context.backbone
        task = self.context.task
        return {
            "method": self.method,
            "config": self.config.model_dump(mode="json"),
            "task": task.config.model_dump(mode="json", exclude={"cache_dir", "data_root"}),
            "class_names": list(task.class_names),
            "template": task.template,
            "backbone": None if backbone is None else [backbone.name, backbone.pretrained],
            "fingerprint": None if backbone is None else backbone.fingerprint,
            "logit_scale": self.context.logit_scale,
            "seed": self.seed,
            "role": self.role,
            # For a blend: its members.
            **getattr(self._algorithm, "identity", {}),
        }

    def _resume(self) -> None:
        path = self.directory / RESUME
        tensors, meta = load_checkpoint(path)
        identity = {"format": meta["format"], **json.loads(json.dumps(self._identity()))}
        # Micro-batches are the same mathematics: a trial that ran out of memory goes on with them.
        for side in (identity, meta):
            side["config"] = {**side.get("config", {}), "micro_batch": None}
        different = [key for key in identity if meta.get(key) != identity[key]]
        if different:
            raise CheckpointError(
                "a trial must go on with the settings it began with",
                got=f"another {', '.join(different)}",
                where=path,
                next_step="Give another --out, or remove this directory to start again.",
            )
        self.training.load_state(tensors)
        rows = [json.loads(line) for line in _whole_lines(self.directory / EPOCHS)]
        kept = {row["epoch"]: json.dumps(row) + "\n" for row in rows if row["epoch"] <= self.epoch}
        atomic_write(self.directory / EPOCHS, "".join(kept.values()))

    def _save_final(self) -> None:
        tensors = final_tensors(self._algorithm)
        # The frozen class features: what a frozen-feature residual is added to, and all there is without training.
        tensors["frozen.text_features"] = self.context.text_features_KD
        save_checkpoint(self.directory / CHECKPOINT, tensors, self._identity())


def run_epochs_together(trials: Sequence[TrainingTrial]) -> list[dict[str, Any] | Exception]:
    """As `run_epoch` of each trial, with the steps that can be packed taken together (`captune.training.packs`).

    The seconds of training are shared out evenly.

    Returns:
        The record of each trial's epoch, or what ended the trial; the others go on.

    Raises:
        RuntimeError: memory ran out, for all of them.
    """
    started = time.perf_counter()
    due = [trial.training.due for trial in trials]
    figures = train_together([trial.training for trial in trials])
    seconds = (time.perf_counter() - started) / len(trials)
    records: list[dict[str, Any] | Exception] = []
    for trial, loops, figure in zip(trials, due, figures, strict=True):
        try:
            records.append(figure if isinstance(figure, Exception) else trial._record_epoch(figure, loops, seconds))
        except Exception as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise  # the other trials of the pack hold the memory, so each is tried again alone
            records.append(error)
    return records


def _whole_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def limit_threads(num_threads: int) -> None:
    """Use this many threads in torch; OMP_NUM_THREADS must have been set before torch was imported."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    torch.set_num_threads(num_threads)
