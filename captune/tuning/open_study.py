"""Open a study on disk: begin it, continue it, or refuse to if its settings differ."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from captune.config import StudyConfig, own_database, read_yaml
from captune.errors import RecordError, UsageError
from captune.plain_yaml import dump_yaml
from captune.records import SCHEMA_VERSION, Event, Journal, Phase, StudyRecord, Trial, atomic_write
from captune.records.events import Finished, StudyOpened
from captune.records.files import missing_folders, remove_empty, remove_leftovers, temporary_name
from captune.records.foreign import check_new_study
from captune.records.journal import read_journal_and_length
from captune.records.layout import (
    GUARD,
    JOURNAL,
    OPTUNA_COPY,
    RESUME,
    STUDY,
    TRIAL_LOCK,
    TRIALS,
    trial_directory,
)
from captune.records.lenient import jsonable
from captune.revision import git_revision
from captune.space import Space
from captune.tuning.cell import Cell
from captune.tuning.lock import DriverLock
from captune.tuning.mirror import HIDDEN, Mirror, open_storage, without_password
from captune.tuning.same_study import dataset_of, is_moved, study_differences
from captune.tuning.specs import CellInfo

_PACKAGES = ("captune", "torch", "open_clip_torch", "ray", "optuna", "numpy", "scikit-learn", "safetensors")


class OpenStudy:
    """A cell with its lock, journal and mirrors, open as long as a driver runs it.

    Args:
        directory: the study's directory.
        study: its settings.
        info: facts of the cell.
        space: the resolved search space.
        resume: continue the study in the directory.
        warm_starts: configurations to try after the first; a continued study keeps those it began with.
        after: directory name of the study beside it whose best configurations are tried first; a continued study keeps
            the one it began with.
        durable: fsync the journal (off only where a test measures something else).

    Raises:
        UsageError: the directory holds another study, or this one and `resume` is off, or it cannot be written.
        StudyError: another driver runs it.
        RecordError: its journal cannot be read, or was written by a newer captune.
    """

    def __init__(
        self,
        directory: Path,
        study: StudyConfig,
        info: CellInfo,
        space: Space,
        *,
        resume: bool = False,
        warm_starts: Iterable[dict[str, Any]] = (),
        after: str | None = None,
        durable: bool = True,
    ) -> None:
        self.directory = directory
        self.warnings: list[str] = []
        self.mirrors: list[Mirror] = []
        self._closed = False
        self._made = missing_folders(directory / TRIALS)
        try:
            _make_directory(directory)
            self._lock = DriverLock(directory)
        except OSError:  # the disk is full
            if directory in self._made:  # else another driver's guard may be there
                self._remove_made()
            raise
        begun = directory not in self._made
        try:
            _clean(directory)
            events, length = _known_events(directory)
            known = StudyRecord(directory, events)
            begun = bool(known.num_openings)
            header = study_header(study, info, space, study_id=known.opened.study_id)
            header = replace(header, warm_starts=tuple(warm_starts), after=after)
            if known.num_openings:
                _check_continues(known, header, resume=resume)
                before, now = dataset_of(known.opened), dataset_of(header)
                if before != now:
                    self.warnings.append(f"The data of this study were {before} before, and are read from {now} now.")
                header = self._began_with(known.opened, header)
            self.after = header.after
            self.study_id = str(header.study_id)
            self.resumed = begun
            self.cell = Cell(directory, study, info, space, warm_starts=header.warm_starts)
            self.cell.replay(events)
            write_study(directory, header)
            journal = Journal(directory / JOURNAL, durable=durable, length=length)
            self._follow(study, space)
            self.cell.check_driver = self._lock.check
            self.cell.open(journal, header)
            for trial in self.cell.trials.values():
                if trial.ended:
                    discard_progress(self.cell, trial.key)
            self.cell.listeners.append(self._tidy)
        except BaseException:
            for mirror in self.mirrors:
                mirror.close()
            self._lock.release()
            if not begun:
                self._delete()
            elif not (directory / STUDY).exists():
                self._remove_made()  # the directory was refused, and stays as it was
            raise

    def _began_with(self, opened: StudyOpened, header: StudyOpened) -> StudyOpened:
        recorded = (opened.warm_starts, opened.after)
        given = (header.warm_starts, header.after)
        if any(given) and given != recorded:
            self.warnings.append("The warm starts that this study began with stay; those given now are not used.")
        return replace(header, warm_starts=opened.warm_starts, after=opened.after)

    def _follow(self, study: StudyConfig, space: Space) -> None:
        """Start the copy of the search in Optuna's storage and, if there is a screen, a copy of it too."""
        name = f"{self.cell.name}-{self.study_id[:8]}"
        followed = [(Phase.SEARCH, name, space, self.cell.search)]
        if space.screen is not None and self.cell.screening is not None:
            followed.append((Phase.SCREEN, f"{name}-screen", space.screen, self.cell.screening.trials))
        for phase, study_name, searched, trials in followed:
            mirror = Mirror(
                lambda: open_storage(self.directory, study.storage),
                study_name,
                searched,
                phase=phase,
                num_objectives=1 if study.objectives == "single" else 2,
                on_trouble=self.warnings.append,
            )
            mirror.start(list(trials))
            self.cell.listeners.append(mirror.on_event)
            self.mirrors.append(mirror)

    def _tidy(self, event: Event, trial: Trial | None) -> None:
        if isinstance(event, Finished):
            discard_progress(self.cell, event.key)

    def note_spent(self, seconds: float, gpu_hours: float, *, shared_by: int) -> None:
        """Write the time and GPU hours of all sessions into study.yaml; studies of one command share these numbers."""
        path = self.directory / STUDY
        spent = {"seconds": round(seconds, 1), "gpu_hours": round(gpu_hours, 4), "studies": shared_by}
        atomic_write(path, dump_yaml(read_yaml(path) | {"spent": spent}))

    def settle(self) -> None:
        """Close journal and mirrors but keep the lock, because the choice and the report are still to be written."""
        self.cell.close()
        for mirror in self.mirrors:
            mirror.close()

    def close(self) -> None:
        """Close journal and mirrors and give the lock back."""
        self.settle()
        if not self._closed:
            self._lock.release()
        self._closed = True

    def withdraw(self) -> None:
        """Close. If nothing was planned yet, delete the files again.

        Otherwise the user's corrected command would be refused as a different study.
        """
        self.close()
        if not self.resumed and not self.cell.trials:
            self._delete()

    def _delete(self) -> None:
        """Delete the study's files, and the folders that were made for it as far as they are empty."""
        # study.yaml last: without it the others are taken for files of another origin.
        for name in (OPTUNA_COPY, JOURNAL, STUDY):
            (self.directory / name).unlink(missing_ok=True)
        remove_empty([self.directory / TRIALS])
        self._remove_made()

    def _remove_made(self) -> None:
        (self.directory / GUARD).unlink(missing_ok=True)
        remove_empty(self._made)


def discard_progress(cell: Cell, key: str) -> None:
    """Delete the resume checkpoint and the lock file of a trial that has ended; its outcome is in the journal now."""
    for name in (RESUME, TRIAL_LOCK):
        (trial_directory(cell.directory, key) / name).unlink(missing_ok=True)


def _make_directory(directory: Path) -> None:
    try:
        (directory / TRIALS).mkdir(parents=True, exist_ok=True)
        probe = temporary_name(directory / "probe")
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UsageError(
            "the directory of a study must be writable", got=error.strerror, where=directory,
            next_step="Make it writable, or go on with a copy of it."
            if (directory / STUDY).exists()
            else "Give another --out.",
        ) from None  # fmt: skip


def _clean(directory: Path) -> None:
    """Remove files that killed processes left. The driver's lock must be held."""
    for place in (directory, *(directory / TRIALS).iterdir()):
        remove_leftovers(place)
    # Optuna's own lock on the copy. A stale one would delay it for half a minute, and nobody else writes the copy.
    for path in directory.glob(f"{OPTUNA_COPY}.lock*"):
        path.unlink(missing_ok=True)


def _known_events(directory: Path) -> tuple[list[Event], int]:
    """The events of the journal, and its length; none if the study was killed before its first line: it begins anew.

    Raises:
        UsageError: there are trials but no journal, or an empty one. With a new journal they would be trained again. Or
            there is something else that the study would replace.
    """
    path = directory / JOURNAL
    events, length = read_journal_and_length(path) if path.exists() else ([], 0)
    if not events and (directory / STUDY).exists() and any((directory / TRIALS).iterdir()):
        raise UsageError(
            "a study's directory must hold its journal",
            got=f"{STUDY} and trials {'with an empty one' if path.exists() else 'without it'}", where=directory,
            next_step="Restore journal.jsonl, or give another --out.",
        )  # fmt: skip
    check_new_study(directory)
    return events, length


def _check_continues(known: StudyRecord, header: StudyOpened, *, resume: bool) -> None:
    directory, opened = known.directory, known.first_opened
    if opened.schema is None or opened.schema > SCHEMA_VERSION:
        raise RecordError(
            f"a study must be continued by the captune that wrote it or a newer one (schema {SCHEMA_VERSION} or less)",
            got=opened.schema, where=directory,
        )  # fmt: skip
    differences = study_differences(opened, header)
    if [key for key, _, _ in differences] == ["task.dataset"] and is_moved(known.opened, header):
        differences = []
    if differences:
        listed = "\n  ".join(f"{key}: {before!r} there, {after!r} now" for key, before, after in differences)
        raise UsageError(
            "the directory of a study must hold the same study or none", got=f"another\n  {listed}", where=directory,
            next_step="Give the same settings with --resume, another --out, or --fork NAME to start beside it.",
        )  # fmt: skip
    if not resume:
        raise UsageError(
            "the directory of a new study must hold no study", got="this study, begun before", where=directory,
            next_step="Say --resume (in Python resume=True) to go on (more --trials extend it), or give another "
            "--out.",
        )  # fmt: skip


def study_header(study: StudyConfig, info: CellInfo, space: Space, *, study_id: str | None = None) -> StudyOpened:
    """The opening of a study: everything needed to read, repeat or continue it, but no password."""
    settings = study.model_dump(mode="json")
    if study.storage is not None:
        settings["storage"] = without_password(study.storage)
    return StudyOpened(
        study_id=study_id or uuid.uuid4().hex,
        cell=info.name,
        study=settings,
        space=space.describe(),
        base=info.base.model_dump(mode="json"),
        screen=_screen_header(info, space),
        metric_name=info.metric_name,
        select_by=info.criterion,
        criterion_help=info.criterion_help,
        num_classes=info.num_classes,
        class_names=info.class_names,
        num_pool=info.num_pool,
        num_scored=info.num_scored,
        num_references=len(info.references),
        both_roles=info.both_roles,
        num_test=info.num_test,
        notes=info.notes,
        versions=versions(),
        git=git_revision(),
        host=platform.node(),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        command=command_line(sys.argv),
    )


def command_line(argv: Sequence[str]) -> str | None:
    """A command of captune as it was typed, passwords in addresses left out; None for any other program."""
    program, *arguments = argv or [""]
    path = Path(program)
    if path.stem != "captune" and path.parent.name != "captune":
        return None
    shown = [without_password(one) if "://" in one or "password=" in one else one for one in arguments]
    return shlex.join(["captune", *shown])


def _screen_header(info: CellInfo, space: Space) -> dict[str, Any] | None:
    if info.screen_base is None or space.screen is None:
        return None
    return {"space": space.screen.describe(), "base": info.screen_base.model_dump(mode="json")}


def write_study(directory: Path, header: StudyOpened) -> None:
    """Write study.yaml, which holds the opening event in readable form."""
    values = jsonable({name: value for name, value in header.as_json().items() if name not in ("event", "time")})
    atomic_write(directory / STUDY, dump_yaml(values))


def with_storage(study: StudyConfig, storage: str | None) -> StudyConfig:
    """A recorded study's settings with `storage` as the address of its database; passwords are not recorded.

    None keeps the recorded address; `none` means a file in the study's directory instead of a database.

    Raises:
        UsageError: the password is needed and was not given.
    """
    if storage is None and study.storage is not None and HIDDEN in study.storage:
        raise UsageError(
            "--storage must be given again where it has a password", got="none", where=study.storage,
            next_step="Passwords are not recorded.",
        )  # fmt: skip
    if storage is None:
        return study
    return study.model_copy(update={"storage": None if storage == "none" else own_database(storage)})


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
