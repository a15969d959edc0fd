"""What a study still owes between its last run and its choice: the ensemble, the vote of all, the mismatched classes.

All of it is written to the journal before the seal is opened, from predictions and what the criterion may see.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from captune.algorithms.concepts import mismatch_report
from captune.config import TaskConfig
from captune.data.labelling import PREDICTIONS_CSV
from captune.records import COMPLETE, CONFIRM, JOURNAL, REFERENCE, SEARCH, STRESS, Journal, read_journal
from captune.results.load import load_run
from captune.training.context import Role, open_context
from captune.training.ensemble import write_ensemble
from captune.training.evaluation import oracle_score
from captune.training.labelling import write_predictions
from captune.tuning.cell import ORACLE
from captune.tuning.votes import CRITERION as ENSV
from captune.tuning.votes import Votes

ENSEMBLE = "ensemble"
# Images times classes above which clustering the pool again and again takes minutes.
_MISMATCH_LIMIT = 20_000_000


def prepare_choice(directory: Path) -> None:
    """Write the ensemble of the confirmed configurations as a reference, and every candidate's agreement with all."""
    events = read_journal(directory / JOURNAL)
    opened = next(event for event in reversed(events) if event["event"] == "study_opened")
    planned = {event["key"]: event for event in events if event["event"] == "planned"}
    complete = [event["key"] for event in events if event["event"] == "finished" and event["state"] == COMPLETE]
    runs = {key: planned[key] for key in dict.fromkeys(complete) if key in planned}
    journal = Journal(directory / JOURNAL)
    try:
        for role in ("score", "report"):
            key = ENSEMBLE + ("-report" if role == "report" else "")
            if _ensemble(directory, opened, runs, role, key, journal, planned=key in planned):
                runs.setdefault(key, {"phase": REFERENCE, "role": role})
        _settle_votes(directory, runs, journal)
    finally:
        journal.close()


def _ensemble(
    directory: Path,
    opened: dict[str, Any],
    runs: dict[str, dict[str, Any]],
    role: Role,
    key: str,
    journal: Journal,
    *,
    planned: bool,
) -> bool:
    groups: dict[int, list[Path]] = {}
    for name, plan in runs.items():
        if plan["phase"] == CONFIRM and plan["role"] == role:
            groups.setdefault(plan["config_id"], []).append(directory / "trials" / name)
    task = TaskConfig.parse(opened["study"]["task"], where=directory / JOURNAL)
    criterion = opened["select_by"]
    started = time.perf_counter()
    outcome = write_ensemble(task, role, [*groups.values()], directory / "trials" / key, criterion=criterion)
    if outcome is None:
        return False
    if criterion == ORACLE and role == "score":
        metric = oracle_score(task, role, directory / "trials" / key)
        outcome |= {"score": metric, "scores": outcome["scores"] | {ORACLE: metric}}
    if not planned:
        journal.append(
            "planned", key=key, phase=REFERENCE, number=None, config_id=None, origin=ENSEMBLE, params={}, config={},
            seed=opened["study"]["seed"], role=role, method=ENSEMBLE, task_overrides={}, time=time.time(),
        )  # fmt: skip
    journal.append(
        "finished", key=key, state=COMPLETE, score_epoch=0, fidelity=1.0, seconds=time.perf_counter() - started,
        node=None, reason=None, traceback=None, **outcome, time=time.time(),
    )  # fmt: skip
    return True


def _settle_votes(directory: Path, runs: dict[str, dict[str, Any]], journal: Journal) -> None:
    # During the search a candidate meets the vote of those before it; what is chosen is judged by the vote of all.
    votes = Votes()
    voters = [
        key for key, plan in runs.items() if plan["role"] == "score" and plan["phase"] in (REFERENCE, SEARCH, CONFIRM)
    ]
    for key in voters:
        votes.add(key, directory / "trials" / key)
    scores = {key: score for key in voters if (score := votes.agreement(key)) is not None}
    if scores:
        journal.append("settled", criterion=ENSV, scores=scores, time=time.time())


def write_study_predictions(directory: Path) -> Path | None:
    """Write predictions.csv: what the advised candidate, over all its seeds, says of the images of the report."""
    run = load_run(directory)
    name = (run.choice or {}).get("name")
    own = [trial for trial in run.trials if trial.name == name and trial.phase != STRESS and trial.state == COMPLETE]
    role: Role = "report" if any(trial.role == "report" for trial in own) else "score"
    runs = [directory / "trials" / trial.key for trial in own if trial.role == role]
    task = TaskConfig.parse(run.study["task"], where=directory / JOURNAL)
    file = directory / PREDICTIONS_CSV
    return file if write_predictions(runs, task, role, file) else None


def record_mismatch(directory: Path) -> None:
    """Write which class names Algorithm 1 finds mismatched on the whole pool once a study; no label is read.

    The event holds `mismatched`, class indices, or null with a `reason` where the pool is too large to do it here.
    """
    events = read_journal(directory / JOURNAL)
    if any(event["event"] == "mismatch" for event in events):
        return
    opened = next(event for event in reversed(events) if event["event"] == "study_opened")
    task = TaskConfig.parse(opened["study"]["task"], where=directory / JOURNAL)
    mismatched, reason = None, None
    if opened["num_pool"] * opened["num_classes"] > _MISMATCH_LIMIT:
        reason = "the pool is too large to look for mismatched classes in passing: use captune mismatch"
    else:
        mismatched = [int(label) for label in mismatch_report(open_context(task, "report")).mismatched]
    journal = Journal(directory / JOURNAL)
    journal.append("mismatch", mismatched=mismatched, reason=reason, time=time.time())
    journal.close()
