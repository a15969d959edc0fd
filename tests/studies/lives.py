"""Whole studies of real trials in one process, without Ray: opened, run trial after trial, closed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from captune.config import StudyConfig, TaskConfig
from captune.decisions.advice import Advice, advise
from captune.decisions.evidence import Evidence
from captune.studies import closing
from captune.studies.planning import Plan, plan_study
from captune.tuning.open_study import OpenStudy
from captune.tuning.pack_members import next_pack
from captune.tuning.specs import TrialSpec
from captune.tuning.trainable import PAYLOAD, SPEC, StudyTrainable, open_trial_anywhere

QUICK = {"epochs": 2, "steps_per_epoch": 2, "tuning": "features"}


def settings(paradigm: str, **values: Any) -> StudyConfig:
    """A study of digits that takes seconds."""
    task = TaskConfig(dataset="digits", paradigm=paradigm)  # type: ignore[arg-type]
    small = {"fixed": QUICK, "trials": 3, "confirm_top": 2, "confirm_seeds": 1}
    return StudyConfig(task=task, method="cap", **(small | values))


def advise_everything(evidence: Evidence) -> Advice:
    """What is advised, with the same weight on every candidate: each kind of model is a member."""
    alike = {name: 1 / len(evidence.probs) for name in evidence.probs}
    return replace(advise(evidence), weights=alike, blend=alike)


def run_trials(plan: Plan, *, resume: bool = False) -> OpenStudy:
    """Run all trials of a study that are left, one pack after another."""
    opened = OpenStudy(
        plan.directory, plan.study, plan.info, plan.space, resume=resume, warm_starts=plan.warm_starts, durable=False
    )
    cell = opened.cell
    cell.chooses_by(closing.chosen_now)
    while pack := next_pack(cell):
        for trial in pack:
            cell.start(trial.key, "node")
        worker = StudyTrainable.__new__(StudyTrainable)
        specs = [cell.spec(trial, threads=1) for trial in pack]
        worker.setup({SPEC: TrialSpec.pack_to_json(specs)}, open_trial=open_trial_anywhere)
        while not all(trial.ended for trial in pack):
            payload = json.loads(worker.step()[PAYLOAD])
            for told in payload["told"]:
                cell.deliver(told["key"], told | {"node": payload["node"]})
        worker.cleanup()
    assert opened.cell.finished
    return opened


def search(directory: Path, study: StudyConfig, *, resume: bool = False) -> Path:
    """A study with its choice and its test metrics, but no report."""
    run_trials(plan_study(study, directory), resume=resume).close()
    closing.choose_and_evaluate(directory)
    return directory
