"""Studies on a real Ray cluster of this machine, with runs of milliseconds."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from captune.records import JOURNAL, Journal, Phase, State
from captune.records.event import Event
from captune.records.events import Epoch, StudyOpened
from captune.space import load_space
from captune.tuning.cell import Cell
from captune.tuning.cluster import Cluster, connected
from captune.tuning.engine import Allotment, run_cells
from captune.tuning.nodes import check_nodes
from captune.tuning.planner import Planner
from captune.tuning.progress import standing
from captune.tuning.specs import TrialSpec
from captune.tuning.starting import wait_for_workers
from captune.tuning.telemetry import published_standings, telemetry
from captune.tuning.trainable import SPEC
from captune.tuning.worker_start import MODULES, READY, words_left
from tests.journals import journal_lines
from tests.tuning.fakes import FakeTrial, Gathering, info, open_fake, opened_by, space_path, study
from tests.tuning.processes import listening
from tests.tuning.simulate import advance, drive, make_cell, outcomes
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(300)  # a busy machine takes minutes to start Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected(None, threads=1, dashboard=False, cpus=2, modules=["fractions", "captune.seeding"]) as ready:
        yield ready
        ready.ending.begin()
        ready.ending.begin()
    assert not ray.is_initialized()
    assert not {"RAY_worker_niceness", MODULES, READY} & os.environ.keys()


def _looks() -> tuple[bool, int, int]:
    imported = "fractions" in sys.modules and "captune.seeding" in sys.modules
    return imported, os.getpriority(os.PRIO_PROCESS, 0), os.getpid()


def test_a_cluster_of_ones_own_has_workers_that_are_ready_and_nice(cluster: Cluster) -> None:
    wait_until(lambda: words_left(cluster.ready)[1] == 2, seconds=200)
    wait_for_workers(cluster.ready, 2, look=lambda: pytest.fail("they are there"))
    started = {int(word.stem) for word in cluster.ready.glob("*.ready")}
    look: Any = ray.remote(_looks)
    imported, niceness, process = ray.get(look.remote())
    assert imported and niceness == os.getpriority(os.PRIO_PROCESS, 0) + 3
    assert process in started, "no other is started"


def new_cell(directory: Path, name: str = "fake-ul-fake", **settings: Any) -> Cell:
    directory.mkdir(parents=True, exist_ok=True)
    facts = info(name)
    cell = Cell(directory, study(**settings), facts, load_space(space_path(directory), facts.base))
    cell.open(Journal(directory / JOURNAL, durable=False), StudyOpened())
    return cell


def without_node(directory: Path) -> list[dict[str, Any]]:
    return outcomes(directory)


class Doomed(FakeTrial):
    """Its process is killed at the end of epoch 2, or while it finishes, the first `times` times."""

    def __init__(self, spec: TrialSpec, *, victim: str, times: int, finishing: bool = False) -> None:
        super().__init__(spec)
        self.victim, self.times, self.finishing = victim, times, finishing

    def run_epoch(self) -> dict[str, Any]:
        row = super().run_epoch()
        if self.epoch >= 2 and not self.finishing:
            self.die()
        return row

    def finish(self) -> dict[str, Any]:
        self.die()
        return super().finish()

    def die(self) -> None:
        marks = list(self.spec.path.glob("killed*"))
        if self.spec.key == self.victim and len(marks) < self.times:
            (self.spec.path / f"killed{len(marks)}").touch()
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_study_on_ray_is_the_study_driven_by_hand(cluster: Cluster, tmp_path: Path) -> None:
    settings = study(trials=6, confirm_top=1, confirm_seeds=1)
    by_hand = tmp_path / "hand"
    by_hand.mkdir()
    drive(make_cell(by_hand, settings))
    on_ray = new_cell(tmp_path / "ray", trials=6, confirm_top=1, confirm_seeds=1)
    assert run_cells([on_ray], cluster, Allotment(1), open_trial=open_fake)
    assert without_node(tmp_path / "ray") == without_node(by_hand)
    assert len(set(opened_by(tmp_path / "ray"))) == 1, "one actor serves one run after another"


@pytest.mark.slow
def test_workers_are_kept_between_the_search_and_the_confirmation(tmp_path: Path, cluster: Cluster) -> None:
    cell = new_cell(tmp_path, trials=3, confirm_top=1, confirm_seeds=3, scheduler="none")
    assert run_cells([cell], cluster, Allotment(2), open_trial=partial(Gathering, processes=2, pause=0.1))
    confirmed = [trial.key for trial in cell.trials.values() if trial.phase is Phase.CONFIRM]
    assert len(confirmed) >= 2
    assert len(set(opened_by(tmp_path))) == 2, "one worker waited while the other ran the last trial of the search"


@pytest.mark.slow
def test_as_many_processes_as_trials_at_once_serve_a_whole_study(cluster: Cluster, tmp_path: Path) -> None:
    """Runs shorter than the start of a process must not keep the second one from coming up."""
    cell = new_cell(tmp_path, trials=2000, confirm_top=0, scheduler="none", sampler="random")
    end = time.monotonic() + 200

    def both_have_worked() -> bool:
        shares = Counter(opened_by(tmp_path)).values()
        return (len(shares) > 1 and min(shares) > 4) or time.monotonic() > end

    assert not run_cells(
        [cell], cluster, Allotment(2), open_trial=partial(FakeTrial, pause=0.05), should_stop=both_have_worked
    )
    shares = Counter(opened_by(tmp_path))
    assert len(shares) == 2 and min(shares.values()) > 4


@pytest.fixture(scope="module")
def three(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    """Three studies that ran together, told to other shells and to TensorBoard; a trial of each fails."""
    root = tmp_path_factory.mktemp("three")
    cells = [new_cell(root / name, name, trials=4, confirm_top=0) for name in ("a", "b", "c")]
    with telemetry(cells, loggers=("tensorboard",)) as on_step:
        open_trial = partial(FakeTrial, pause=0.02, fail="t0001")
        assert run_cells(cells, cluster, Allotment(2), open_trial=open_trial, on_step=on_step)
    return cells


def test_cells_share_the_cluster_fairly(three: list[Cell]) -> None:
    assert all(len(outcomes(cell.directory)) == 6 for cell in three)
    lines = [(line["time"], cell.name, line) for cell in three for line in journal_lines(cell.directory / JOURNAL)]
    starts = [name for _, name, line in sorted(lines, key=lambda one: one[0]) if line["event"] == "started"]
    begun = Counter[str]()
    while max(begun.values(), default=0) < 6:
        begun[starts[begun.total()]] += 1
    # A third study may wait all this time for a process that starts slowly.
    assert sorted(begun[cell.name] for cell in three)[1] >= 4, "no study takes both workers until it is done"


def test_trials_of_several_cells_are_handed_out_in_turn(tmp_path: Path) -> None:
    cells = [new_cell(tmp_path / name, name, trials=4, confirm_top=0, scheduler="none") for name in ("a", "b", "c")]
    planner = Planner(cells, packed=False, workers=2)
    handed_out = dict.fromkeys((cell.name for cell in cells), 0)
    running: list[tuple[str, Cell, TrialSpec]] = []
    numbers = map(str, itertools.count())
    while sum(handed_out.values()) < 18:
        while len(running) < 2:
            number = next(numbers)
            (spec,) = TrialSpec.pack_from_json(planner.suggest(number)[SPEC])
            planner.started(number, "node")
            handed_out[spec.cell] += 1
            assert max(handed_out.values()) - min(handed_out.values()) <= 1, handed_out
            running.append((number, next(cell for cell in cells if cell.name == spec.cell), spec))
        number, cell, spec = running.pop(0)
        worker = FakeTrial(spec)
        while not advance(cell, spec.key, worker):
            pass
        planner.on_trial_complete(number)


@pytest.mark.slow
def test_a_killed_worker_goes_on_from_its_checkpoint_and_changes_no_number(cluster: Cluster, tmp_path: Path) -> None:
    settings = {"trials": 3, "confirm_top": 0, "scheduler": "none"}
    by_hand = tmp_path / "hand"
    by_hand.mkdir()
    drive(make_cell(by_hand, study(**settings)))
    cell = new_cell(tmp_path / "ray", **settings)
    assert run_cells([cell], cluster, Allotment(1), open_trial=partial(Doomed, victim="t0001", times=1))
    assert without_node(tmp_path / "ray") == without_node(by_hand)
    opened = (tmp_path / "ray/trials/t0001/opened.txt").read_text().split()[1::2]
    assert opened == ["0", "2"], "epoch 2 was trained before the kill and is not trained again"
    events = journal_lines(tmp_path / "ray" / JOURNAL)
    assert [e["key"] for e in events if e["event"] == "crashed"] == ["t0001"]
    assert [e["epoch"] for e in events if e["event"] == "epoch" and e["key"] == "t0001"] == list(
        range(1, outcomes(tmp_path / "ray")[3]["score_epoch"] + 1)
    )


@pytest.mark.slow
def test_a_worker_killed_while_it_finishes_trains_nothing_again(cluster: Cluster, tmp_path: Path) -> None:
    settings = {"trials": 2, "confirm_top": 0, "scheduler": "none"}
    by_hand = tmp_path / "hand"
    by_hand.mkdir()
    drive(make_cell(by_hand, study(**settings)))
    cell = new_cell(tmp_path / "ray", **settings)
    doomed = partial(Doomed, victim="t0001", times=1, finishing=True)
    assert run_cells([cell], cluster, Allotment(1), open_trial=doomed)
    assert without_node(tmp_path / "ray") == without_node(by_hand)
    rows = (tmp_path / "ray/trials/t0001/epochs.jsonl").read_text().splitlines()
    assert len(rows) == outcomes(tmp_path / "ray")[3]["score_epoch"]


@pytest.mark.slow
def test_a_trial_that_always_dies_fails_and_the_study_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    cell = new_cell(tmp_path, trials=3, confirm_top=0, max_failures=1, scheduler="none")
    assert run_cells([cell], cluster, Allotment(2), open_trial=partial(Doomed, victim="t0001", times=99))
    ends = {end["key"]: end for end in outcomes(tmp_path)}
    assert ends["t0001"]["state"] == State.FAILED and ends["t0001"]["reason"].startswith("its process died 2 times")
    assert ends["t0002"]["state"] == State.COMPLETE


def test_failures_are_recorded_with_their_reason_and_traceback(three: list[Cell]) -> None:
    (failed,) = [end for end in outcomes(three[0].directory) if end["state"] == State.FAILED]
    assert failed["reason"] == "the loss must stay finite, but got nan."
    assert "TrainingFailed" in failed["traceback"] and "run_epoch" in failed["traceback"]


def test_an_interrupt_keeps_what_is_done_and_the_rest_goes_on_later(cluster: Cluster, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trials": 5, "confirm_top": 0, "scheduler": "none"}
    cell = new_cell(tmp_path / "ray", **settings)
    interrupt_when(cell, lambda event: isinstance(event, Epoch) and event.key == "t0002")
    assert not run_cells([cell], cluster, Allotment(1), open_trial=partial(Interrupted, after="t0002", pause=0.05))
    cell.close()
    before = outcomes(tmp_path / "ray")
    assert {"t0000", "t0001"} <= {end["key"] for end in before}
    assert len(before) < 7
    again = make_cell(tmp_path / "ray", study(**settings))
    assert run_cells([again], cluster, Allotment(1), open_trial=open_fake)
    by_hand = tmp_path / "hand"
    by_hand.mkdir()
    drive(make_cell(by_hand, study(**settings)))
    assert without_node(tmp_path / "ray") == without_node(by_hand)


class Interrupted(FakeTrial):
    """Of a study that is interrupted: trials behind the key `after` train only once the signal was sent."""

    def __init__(self, spec: TrialSpec, *, after: str = "", pause: float) -> None:
        super().__init__(spec, pause=pause)
        self.after = after

    def run_epoch(self) -> dict[str, Any]:
        if self.spec.key > self.after:
            wait_until((self.spec.path.parents[1] / "interrupted").exists, seconds=120)
        return super().run_epoch()


def interrupt_when(cell: Cell, condition: Callable[[Event], bool]) -> None:
    done: list[bool] = []

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        (cell.directory / "interrupted").touch()

    def listen(event: Event, _run: object) -> None:
        if condition(event) and not done:
            done.append(True)
            threading.Timer(0.02, interrupt).start()

    cell.listeners.append(listen)


def test_the_standing_is_published_for_other_shells(three: list[Cell]) -> None:
    for cell in three:
        (found,) = [how for how in published_standings() if how.cell == cell.name]
        assert found == standing(cell)
        assert found.phase == "done" and found.done == 6 and found.failed == 1 and found.zero_shot == 0.7
        assert list((cell.directory / "tensorboard" / "t0000").glob("events.out.*"))


def test_every_node_is_asked_whether_it_sees_the_study(cluster: Cluster, tmp_path: Path) -> None:
    check_nodes([tmp_path])
    assert not list(tmp_path.glob(".visible*"))


def test_a_cluster_of_our_own_asks_for_a_token_that_only_its_owner_reads(cluster: Cluster) -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert cluster.authenticated and cluster.warning is None
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) == 64


def test_a_cluster_of_our_own_listens_on_loopback_only(cluster: Cluster) -> None:
    addresses = listening(os.getpid())
    assert len(addresses) >= 4, "driver, GCS, raylet and agents listen somewhere"
    assert {address for address, _ in addresses} == {"127.0.0.1"}


@pytest.mark.slow
def test_no_trial_waits_for_a_process_of_its_own(cluster: Cluster, tmp_path: Path) -> None:
    """Its start would be most of a short trial; how long a trial takes beside its training, the benchmark measures."""
    cell = new_cell(tmp_path, trials=12, confirm_top=0, scheduler="none")
    assert run_cells([cell], cluster, Allotment(2), open_trial=open_fake)
    opened = opened_by(tmp_path)
    assert len(opened) == 14 and len(set(opened)) <= 2
