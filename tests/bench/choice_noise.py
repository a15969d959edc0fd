"""What a study's budget does to its choice: `python -m tests.bench.choice_noise OUT.csv --dataset digits --seeds 4`.

Runs whole studies without Ray, two packs in turn as two workers would train them, at several budgets (search trials ×
seeds of the confirmation). A row a study: what the sealed test says of the configuration it chose and of what it
advises, and the CPU seconds of its training. The spread over study seeds is the noise of the choice.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from captune.config import StudyConfig, TaskConfig
from captune.records import Phase, StudyRecord, Trial
from captune.studies import closing
from captune.studies.planning import plan_study
from captune.training.trial import limit_threads
from captune.tuning.open_study import OpenStudy
from captune.tuning.pack_members import next_pack
from captune.tuning.specs import TrialSpec
from captune.tuning.trainable import PAYLOAD, SPEC, StudyTrainable, open_trial_anywhere


@dataclass(frozen=True)
class ChoiceOfStudy:
    """A study and what the sealed test says of its choice; metrics in points, gains over zero-shot."""

    dataset: str
    paradigm: str
    seed: int
    trials: int
    confirm_seeds: int
    zero_shot: float
    best_gain: float
    """Of the chosen configuration, mean over its confirmation seeds."""
    first_gain: float
    """Of the method's default, likewise."""
    advised_gain: float
    epochs: int
    """Trained in all, a configuration's counting as its own."""
    cpu_seconds: float
    load: float


def run_study(task: TaskConfig, seed: int, trials: int, confirm_seeds: int, *, workers: int = 2) -> ChoiceOfStudy:
    """A study from its first trial to its metrics."""
    study = StudyConfig(task=task, seed=seed, trials=trials, confirm_seeds=confirm_seeds)
    with tempfile.TemporaryDirectory(prefix="captune-choice-") as folder:
        plan = plan_study(study, Path(folder) / "study")
        opened = OpenStudy(plan.directory, plan.study, plan.info, plan.space, durable=False)
        opened.cell.chooses_by(closing.chosen_now)
        began = time.process_time()
        _train(opened, workers)
        seconds = time.process_time() - began
        opened.close()
        record = closing.choose_and_evaluate(plan.directory)
    return _row(record, task, study, seconds)


def _train(opened: OpenStudy, workers: int) -> None:
    cell = opened.cell
    running: list[tuple[StudyTrainable, list[Trial]]] = []
    while True:
        while len(running) < workers and (pack := next_pack(cell, workers=workers)):
            for trial in pack:
                cell.start(trial.key, "node")
            worker = StudyTrainable.__new__(StudyTrainable)
            specs = [cell.spec(trial, threads=1) for trial in pack]
            worker.setup({SPEC: TrialSpec.pack_to_json(specs)}, open_trial=open_trial_anywhere)
            running.append((worker, pack))
        if not running:
            return
        for worker, _ in running:
            payload = json.loads(worker.step()[PAYLOAD])
            for told in payload["told"]:
                cell.deliver(told["key"], told | {"node": payload["node"]})
        for worker, pack in running:
            if all(trial.ended for trial in pack):
                worker.cleanup()
        running = [(worker, pack) for worker, pack in running if not all(trial.ended for trial in pack)]


def _row(record: StudyRecord, task: TaskConfig, study: StudyConfig, seconds: float) -> ChoiceOfStudy:
    choice = record.choice
    assert choice is not None
    zero_shot = _metric(record, "zero_shot")
    return ChoiceOfStudy(
        dataset=task.dataset.rpartition("/")[2], paradigm=task.paradigm, seed=study.seed, trials=study.trials,
        confirm_seeds=study.confirm_seeds, zero_shot=zero_shot,
        best_gain=_metric(record, f"c{choice.config_id}") - zero_shot,
        first_gain=_metric(record, "c0") - zero_shot,
        advised_gain=_metric(record, str(choice.name)) - zero_shot,
        epochs=sum(trial.num_epochs for trial in record.trials), cpu_seconds=round(seconds, 1),
        load=round(os.getloadavg()[0], 1),
    )  # fmt: skip


def _metric(record: StudyRecord, name: str) -> float:
    """The sealed metric of a candidate, in points, over its seeds."""
    own = [t for t in record.complete() if name in (t.key, t.name) and t.phase is not Phase.STRESS]
    reported = [t for t in own if t.metric is not None]
    return 100 * statistics.mean(float(t.metric or 0.0) for t in reported) if reported else float("nan")


def spread(rows: Sequence[ChoiceOfStudy]) -> str:
    """A Markdown row for each budget: mean and standard deviation over study seeds."""
    lines = []
    for key in dict.fromkeys((r.dataset, r.paradigm, r.trials, r.confirm_seeds) for r in rows):
        own = [r for r in rows if (r.dataset, r.paradigm, r.trials, r.confirm_seeds) == key]
        cells: list[Any] = [f"{key[0]} {key[1]}", f"{key[2]} × {key[3]}", len(own)]
        for name in ("best_gain", "first_gain", "advised_gain"):
            values = [getattr(row, name) for row in own]
            sd = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(f"{statistics.mean(values):+.2f} ± {sd:.2f}")
        cells += [
            f"{statistics.mean(row.epochs for row in own):.0f}",
            f"{statistics.median(r.cpu_seconds for r in own):.0f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--paradigm", default="ul")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--budgets", nargs="+", default=["12x3", "48x6", "96x10"], help="search trials x seeds")
    asked = parser.parse_args()
    limit_threads(1)
    task = TaskConfig.parse({"dataset": asked.dataset, "paradigm": asked.paradigm})
    rows: list[ChoiceOfStudy] = []
    new = not asked.out.exists()
    with asked.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(ChoiceOfStudy)], lineterminator="\n")
        if new:
            writer.writeheader()
        for seed in asked.seeds:
            for budget in asked.budgets:
                trials, confirm_seeds = map(int, budget.split("x"))
                rows.append(run_study(task, seed, trials, confirm_seeds))
                writer.writerow(asdict(rows[-1]))
                file.flush()
    print(spread(rows))


if __name__ == "__main__":
    main()
