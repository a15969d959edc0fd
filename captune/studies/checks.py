"""Checks that run before Ray starts: do addresses answer, do the GPUs and files exist?

PyTorch and the database's library are imported only for studies that need them.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from captune.data.catalog import TINY, default_backbone
from captune.errors import StudyError, UsageError, first_line
from captune.plain_text import typed_path
from captune.records import ZERO_SHOT, Phase, StudyRecord
from captune.records.layout import PREDICTIONS, STUDY, TRIALS, trial_directory
from captune.studies.planning import Plan
from captune.tuning.allotment import refuse_several_gpus
from captune.tuning.cluster import check_address
from captune.tuning.mirror import without_password

_ANSWER_SECONDS = 4.0
_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


def check_before_ray(
    plans: Sequence[Plan], *, address: str | None, gpus_per_trial: float | None, allow_cpu: bool
) -> None:
    """Check that what the studies name exists, so that a mistake is reported before Ray starts.

    Args:
        plans: the studies.
        address: of a running cluster, whose GPUs are checked later, once it is connected; None: this machine.
        gpus_per_trial: as the user gave it.
        allow_cpu: whether trials may train on the CPU where a GPU cannot be used.

    Raises:
        UsageError: a cluster or database does not answer, or a trial asks for more than one GPU or for one that this
            machine does not have.
        ConfigError: class descriptions cannot be read.
    """
    refuse_several_gpus(gpus_per_trial)
    if address is not None:
        check_address(address)
    elif gpus_per_trial and not allow_cpu:
        _check_gpu(gpus_per_trial)
    for storage in dict.fromkeys(plan.study.storage for plan in plans if plan.study.storage is not None):
        check_storage(storage)
    for file in dict.fromkeys(plan.study.task.descriptions for plan in plans):
        if file is not None:
            from captune.model.class_descriptions import load_descriptions

            load_descriptions(file)


def check_predictions(record: StudyRecord, *, finished: bool) -> None:
    """Check that what a study's trials predicted is there as far as the study still needs it.

    Otherwise the choice, or the test's predictions, would come from fewer trials than the study had.

    Args:
        record: the study.
        finished: whether all its trials have ended; else it will choose again.

    Raises:
        StudyError: predictions are missing.
    """
    ended = record.complete()
    lost = {trial.key for trial in ended if not (trial_directory(record.directory, trial.key) / PREDICTIONS).exists()}
    if not lost:
        return
    from captune.decisions.candidates import advised_shares, candidate_trials, ensemble_trials, reported_role

    if not finished or record.choice is None or not record.choice_is_current:
        needed = [trial for group in candidate_trials(record).values() for trial in group]
        if not finished:  # what the search tried may still be confirmed, by trials of its own
            needed = [trial for trial in needed if trial.phase is not Phase.SEARCH]
    else:
        shares = advised_shares(record, record.choice)
        groups = ensemble_trials(record, shares, reported_role(record, shares))
        needed = [trial for group in groups.values() for trial in group]
        needed += [trial for trial in ended if trial.key == ZERO_SHOT]
    missing = sorted({trial.key for trial in needed} & lost)
    if missing:
        raise StudyError(
            "the predictions of a study's trials must be there",
            got=f"no {TRIALS}/{missing[0]}/{PREDICTIONS}"
            + (f" and {len(missing) - 1} more missing" if missing[1:] else ""),
            where=record.directory,
            next_step=f"Restore {TRIALS}/ from a copy, or run the study again: captune run "
            f"{typed_path(record.directory / STUDY)} --out DIR. Its tables need none of them: "
            f"captune report {typed_path(record.directory)}",
        )


def _check_gpu(gpus_per_trial: float) -> None:
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            "--gpus-per-trial needs a GPU that PyTorch can use",
            got=f"{gpus_per_trial:g} per trial, and PyTorch {torch.__version__} sees none on this machine",
            next_step="Leave it out to train on the CPU; `captune doctor` says why a GPU is not seen.",
        )


def fetch_weights_here(plans: Sequence[Plan]) -> None:
    """Download the weights that this machine's trials will need, before Ray starts.

    Raises:
        ModelError: weights are not on disk and cannot be downloaded.
    """
    named = (plan.study.task for plan in plans if not plan.study.task.dataset.startswith("features:"))
    backbones = [names for names in dict.fromkeys(map(default_backbone, named)) if names != (TINY, None)]
    if not backbones:
        return
    from captune.model.sources import find_source
    from captune.model.weights import fetch_weights

    for name, pretrained in backbones:
        fetch_weights(find_source(name, pretrained))


def check_storage(storage: str) -> None:
    """Check that a database answers; for an SQLite file it is enough that its folder exists.

    Raises:
        UsageError: it does not; the message says why.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(storage)
        if url.get_backend_name() == "sqlite":
            folder = Path(url.database or ".").expanduser().absolute().parent
            if not folder.is_dir():
                raise OSError(f"no folder {folder}")
            return
        if url.host is not None:
            port = url.port or _PORTS.get(url.get_backend_name())
            if port is not None:
                # If nothing answers, the database's driver would wait for minutes.
                socket.create_connection((url.host, port), timeout=_ANSWER_SECONDS).close()
        create_engine(url).connect().close()
    except Exception as error:  # the database drivers have no common base
        reason = "no address of a database" if isinstance(error, ArgumentError) else first_line(error)
        raise UsageError(
            "--storage must be the address of a database that answers",
            got=f"'{without_password(storage)}': {reason.replace(storage, without_password(storage))}",
            next_step="For example sqlite:///FILE or postgresql://USER@HOST/NAME. Without --storage the copy is a "
            "file of the study.",
        ) from None
