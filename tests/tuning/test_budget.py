"""Budgets, early ends, and trials tried again: counted from journals, driven without Ray."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from captune.config import MachineConfig
from captune.errors import ConfigError, StudyError
from captune.records import JOURNAL, StudyRecord, read_journal
from captune.records.events import Finished, Planned, SearchEnded, Started, StudyOpened
from captune.records.usage import Usage, covered
from captune.space import Parameter, Space
from captune.tuning.budget import Budget
from captune.tuning.cell import Cell
from captune.tuning.planner import Planner, StudyScheduler
from captune.tuning.silence import Silence
from captune.tuning.stopping import StopRequests, request_stop
from captune.tuning.trainable import PAYLOAD
from tests.tuning.fakes import FakeTrial, info, study
from tests.tuning.simulate import advance, drive, make_cell, outcomes


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45.0), ("90m", 5400.0), ("6h", 21600.0), ("2d", 172800.0), ("1h30m", 5400.0)]
)
def test_a_time_is_typed_as_people_say_it(text: str, seconds: float) -> None:
    assert MachineConfig.parse({"time_budget": text}).time_budget == seconds


@pytest.mark.parametrize("text", ["6", "six hours", "0h", "-1h", "6h later"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a time such as"):
        MachineConfig.parse({"time_budget": text})


def test_hours_side_by_side_count_once() -> None:
    # [0, 10] and [5, 12] cover 12, [20, 21] one more.
    assert covered([(5.0, 12.0), (0.0, 10.0), (20.0, 21.0)]) == 13.0


def test_usage_counts_sessions_and_the_gpus_of_trials_over_drivers_that_died() -> None:
    usage = Usage(
        [
            StudyOpened(time=100.0),
            Started(key="t0000", time=110.0, gpus=0.5),
            Started(key="t0001", time=110.0, gpus=0.5),
            Finished(key="t0000", state="COMPLETE", time=150.0),
            # The driver dies; the study goes on half an hour later.
            StudyOpened(time=2000.0),
            Started(key="t0001", time=2010.0, gpus=0.5),
        ]
    )
    assert usage.sessions(2050.0) == [(100.0, 150.0), (2000.0, 2050.0)]
    # t0000 and t0001 forty seconds each, t0001 forty more by now, on half a GPU.
    assert usage.gpu_seconds(2050.0) == pytest.approx(0.5 * (40 + 40 + 40))


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_while_a_study_runs_neither_stretches_nor_ends_its_budget(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hours: int
) -> None:
    cell = make_cell(tmp_path)
    cell.record.usage.apply(StudyOpened(time=time.time()))
    real, ahead = time.time, [0]
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * ahead[0])
    budget = Budget([cell], seconds=1000.0)
    ahead[0] = hours
    monkeypatch.setattr(time, "monotonic", lambda began=time.monotonic() + 100.0: began)
    assert 99.0 < budget.spent_seconds < 110.0
    # A trial that begins afterwards counts from its beginning.
    cell.record.usage.apply(Started(key="t0000", time=time.time() - 36.0, gpus=1.0))
    assert 0.01 < budget.spent_gpu_hours < 0.012


def test_a_driver_whose_clock_is_behind_the_one_before_counts_its_own_time() -> None:
    usage = Usage([StudyOpened(time=5000.0), Started(key="t0000", time=5001.0), StudyOpened(time=1000.0)])
    usage.apply(Started(key="t0000", time=1010.0))
    usage.apply(StudyOpened(time=1200.0))
    assert usage.sessions(1230.0) == [(5000.0, 5001.0), (1000.0, 1010.0), (1200.0, 1230.0)]


class Clock:
    """Unix seconds, as the test says."""

    def __init__(self, start: float) -> None:
        self.now = start

    def __call__(self) -> float:
        return self.now


def epochs_of(cell: Cell, clock: Clock, budget: Budget, *, seconds: float) -> None:
    """Train one run after another, `seconds` an epoch, with the budget watched after each."""
    while (trial := cell.next_trial()) is not None:
        worker = FakeTrial(cell.spec(trial, threads=1), seconds=seconds)
        cell.start(trial.key, "node")
        while not advance(cell, trial.key, worker):
            clock.now += seconds
            budget.check(concurrency=1, gpus=0.0)
        budget.check(concurrency=1, gpus=0.0)


def opened_at(cell: Cell) -> Clock:
    return Clock(float(read_journal(cell.directory / JOURNAL)[0].time or 0.0))


def test_a_time_budget_ends_the_search_early_enough_to_confirm_inside_it(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, study(trials=200, confirm_top=2, confirm_seeds=2, scheduler="none"))
    clock = opened_at(cell)
    began = clock.now
    budget = Budget([cell], seconds=1000.0, clock=clock)
    epochs_of(cell, clock, budget, seconds=5.0)
    assert cell.finished
    phases = [event.phase for event in read_journal(tmp_path / JOURNAL) if isinstance(event, Planned)]
    assert 4 < phases.count("search") < 200
    assert phases.count("confirm") >= 4, "the best are confirmed"
    assert 600 < clock.now - began <= 1000
    (ended,) = [event for event in read_journal(tmp_path / JOURNAL) if isinstance(event, SearchEnded)]
    assert ended.reason == "the time budget of 1000 s"


def test_the_time_that_reports_take_is_kept_too(tmp_path: Path) -> None:
    def ends(name: str, closings: float) -> float:
        (tmp_path / name).mkdir()
        cell = make_cell(tmp_path / name, study(trials=200, confirm_top=0, scheduler="none"))
        clock = opened_at(cell)
        budget = Budget([cell], seconds=1000.0, closings=lambda: closings, clock=clock)
        while cell.record.search_ended is None:
            clock.now += 1.0
            budget.check(concurrency=2, gpus=0.0)
        cell.close()
        return budget.spent_seconds

    assert ends("some", 100.0) == pytest.approx(900, abs=2)
    assert ends("none", 0.0) == pytest.approx(1000, abs=2)


def test_a_study_whose_budget_ended_it_is_finished_and_goes_on_with_more_trials_or_more_time(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, study(trials=200, confirm_top=1, confirm_seeds=1, scheduler="none"))
    clock = opened_at(cell)
    epochs_of(cell, clock, Budget([cell], seconds=300.0, clock=clock), seconds=5.0)
    done = len(cell.search)
    cell.close()
    again = make_cell(tmp_path, study(trials=200, confirm_top=1, confirm_seeds=1, scheduler="none"))
    assert again.finished and len(again.search) == done
    Budget([again], seconds=100.0, clock=Clock(clock.now)).reopen()  # less than was spent
    again.close()
    more_trials = make_cell(tmp_path, study(trials=201, confirm_top=1, confirm_seeds=1, scheduler="none"))
    assert not more_trials.finished
    more_trials.close()
    more_time = make_cell(tmp_path, study(trials=200, confirm_top=1, confirm_seeds=1, scheduler="none"))
    assert more_time.finished
    Budget([more_time], seconds=1e9, clock=Clock(clock.now)).reopen()
    assert not more_time.finished
    assert StudyRecord(tmp_path, read_journal(tmp_path / JOURNAL)).search_ended is None


def test_gpu_hours_end_the_search_too(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, study(trials=50, confirm_top=0, scheduler="none"))
    clock = opened_at(cell)
    budget = Budget([cell], gpu_hours=0.001, clock=clock)
    trial = cell.next_trial()
    assert trial is not None
    cell.start(trial.key, "node", gpus=0.5)
    clock.now = float(read_journal(tmp_path / JOURNAL)[-1].time or 0.0) + 10.0
    assert budget.spent_gpu_hours == pytest.approx(5.0 / 3600)
    budget.check(concurrency=1, gpus=0.5)
    assert cell.record.search_ended is not None and "GPU hours" in str(cell.record.search_ended.reason)


# ── spaces of few points ──────────────────────────────────────────────────────────────────────────


def two_values(tmp_path: Path, trials: int) -> Cell:
    choices = Parameter("learning_rate", "categorical", "scientific", choices=(0.01, 0.02))
    steps = Parameter("weight_decay", "categorical", "nuisance", choices=(0.01, 0.02))
    facts = info()
    cell = Cell(tmp_path, study(trials=trials, confirm_top=0), facts, Space((choices, steps)))
    return cell


def test_a_space_of_few_points_is_walked_and_no_point_is_tried_twice(tmp_path: Path) -> None:
    from captune.records import Journal

    cell = two_values(tmp_path, trials=8)
    cell.open(Journal(tmp_path / JOURNAL, durable=False), StudyOpened())
    drive(cell)
    tried = [tuple(sorted(trial.params.items())) for trial in cell.search]
    assert len(tried) == len(set(tried))
    assert set(tried) >= {
        (("learning_rate", rate), ("weight_decay", decay)) for rate in (0.01, 0.02) for decay in (0.01, 0.02)
    }
    assert cell.finished and len(tried) <= 5
    cell.close()
    again = two_values(tmp_path, trials=8)
    again.replay(read_journal(tmp_path / JOURNAL))
    assert again.num_trials == len(tried)


def test_the_points_of_a_space_are_known_where_they_have_an_end() -> None:
    whole = Parameter("epochs", "int", "nuisance", low=2, high=6, step=2)
    assert whole.values(10) == (2, 4, 6)
    assert whole.values(2) is None
    assert Space((whole,)).points(3) == [{"epochs": 2}, {"epochs": 4}, {"epochs": 6}]
    assert Space((whole, Parameter("learning_rate", "float", "scientific", 0.1, 0.2))).points(1000) is None


# ── failed trials ─────────────────────────────────────────────────────────────────────────────────


def test_failed_trials_are_tried_again_once_they_are_asked_for_the_papers_first(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, study(trials=4, confirm_top=1, confirm_seeds=1, scheduler="none"))
    drive(cell, fail="t000")
    failed = [end["key"] for end in outcomes(tmp_path) if end["state"] == "FAILED"]
    assert failed
    cell.close()
    again = make_cell(tmp_path, study(trials=4, confirm_top=1, confirm_seeds=1, scheduler="none"))
    order = again.retry_failed()
    assert order[0] == "t0000" and sorted(order) == sorted(failed)
    drive(again)
    assert {trial.state for trial in again.trials.values()} == {"COMPLETE"}
    again.close()
    # What was told once stays readable: the journal of a retried study is replayed by every later command.
    third = make_cell(tmp_path, study(trials=4, confirm_top=1, confirm_seeds=1, scheduler="none"))
    assert third.finished and {trial.state for trial in third.trials.values()} == {"COMPLETE"}


def test_a_trial_past_its_time_ends_with_its_reason_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = make_cell(tmp_path, study(trials=1, confirm_top=0))
    planner = Planner([cell], timeout=60.0)
    clock = Clock(0.0)
    monkeypatch.setattr("captune.tuning.planner.time.monotonic", clock)
    planner.suggest("tune-1")
    planner.started("tune-1", None)
    clock.now = 59.0
    assert planner.overdue() == {}
    clock.now = 61.0
    (error,) = planner.overdue().values()
    assert isinstance(error, StudyError)
    planner.lost("tune-1", error, None)
    (trial,) = [trial for trial in cell.trials.values() if trial.ended]
    assert trial.state == "FAILED" and "--trial-timeout (60 s)" in str(trial.reason)
    assert trial.key not in cell.waiting


def test_a_pack_has_the_time_of_its_trials_but_a_read_that_hangs_in_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = Planner([make_cell(tmp_path, study(trials=2, confirm_top=0))], timeout=60.0)
    clock = Clock(0.0)
    monkeypatch.setattr("captune.tuning.planner.time.monotonic", clock)
    for name in ("tune-1", "tune-2"):
        planner.suggest(name)
    cell, (first,) = planner._trials.pop("tune-1")
    _, (second,) = planner._trials.pop("tune-2")
    planner._trials["pack"] = (cell, (first, second))
    planner.started("pack", None)
    for clock.now in (50.0, 100.0):
        planner.report("pack", {PAYLOAD: json.dumps({"told": [], "node": "node"})})
        assert planner.overdue() == {}
    clock.now = 119.0
    assert planner.overdue() == {}
    clock.now = 121.0
    assert "60 s so far" in str(planner.overdue()["pack"])
    planner._trials["pack"] = (cell, (first, second, "a", "b", "c"))
    assert planner.overdue() == {}, "five have five minutes"
    clock.now = 161.0
    assert "61 s so far" in str(planner.overdue()["pack"]), "but a minute has passed since the last report"


def test_tunes_own_handling_of_a_trial_past_its_time_keeps_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune keeps the errors of processes only: this one came back as a process that died, and was tried again."""
    cell = make_cell(tmp_path, study(trials=1, confirm_top=0))
    planner = Planner([cell], timeout=60.0)
    scheduler = StudyScheduler(planner)
    clock = Clock(0.0)
    monkeypatch.setattr("captune.tuning.planner.time.monotonic", clock)
    # Its place is below the session of a Ray that runs.
    monkeypatch.setattr(Trial, "local_path", property(lambda _trial: str(tmp_path)))
    trial = Trial("captune", stub=True)
    trial.set_status(Trial.PENDING)
    tune = MagicMock(spec=TuneController, _scheduler_alg=scheduler, _search_alg=planner, _callbacks=MagicMock())
    tune.configure_mock(_iteration=0, _trials=[trial])
    tune._process_trial_failure = partial(TuneController._process_trial_failure, tune)
    tune.get_live_trials.return_value = [trial]
    tune.get_trial.return_value = trial
    planner.suggest(trial.trial_id)
    assert scheduler.choose_trial_to_run(tune) is trial
    planner.started(trial.trial_id, None)
    trial.set_status(Trial.RUNNING)
    clock.now = 61.0
    scheduler.end_overdue()
    (ended,) = cell.trials.values()
    assert (ended.state, ended.crashes) == ("FAILED", 0) and "--trial-timeout (60 s)" in str(ended.reason)
    tune._schedule_trial_stop.assert_called_once()


# ── asking to stop ────────────────────────────────────────────────────────────────────────────────


def test_a_request_to_stop_is_heard_once_and_one_of_another_day_not_at_all(tmp_path: Path) -> None:
    request_stop(tmp_path)
    requests = StopRequests([tmp_path])
    assert not requests.came(), "the study was started after it"
    request_stop(tmp_path)
    requests._looked = 0.0
    assert requests.came()
    requests._looked = 0.0
    assert not requests.came()


# ── what a person is told ─────────────────────────────────────────────────────────────────────────


def test_what_is_left_of_a_budget_is_counted_down_in_words(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, study(trials=4, confirm_top=0))
    clock = opened_at(cell)
    budget = Budget([cell], seconds=1800.0, gpu_hours=2.0, clock=clock)
    trial = cell.next_trial()
    assert trial is not None
    cell.start(trial.key, "node", gpus=0.5)
    clock.now += 720.0
    assert budget.left() == "18 min left of the budget of 30 min, 1.90 of 2 GPU hours left"
    assert Budget([cell]).left() is None


def test_a_trial_that_makes_no_step_for_ten_times_its_usual_time_is_told_once(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, study(trials=3, confirm_top=0, scheduler="none"))
    clock, told = Clock(0.0), list[str]()
    silence = Silence([cell], told.append, clock=clock)

    def after(seconds: float) -> int:
        clock.now += seconds
        silence.look()
        return len(told)

    def begin() -> tuple[str, FakeTrial]:
        trial = cell.next_trial()
        assert trial is not None
        cell.start(trial.key, "worker-3")
        return trial.key, FakeTrial(cell.spec(trial, threads=1), seconds=30.0)

    while (begun := begin())[0] in ("zero_shot", "balanced"):
        advance(cell, *begun)
    key, worker = begun
    assert after(10_000.0) == 0, "nobody knows yet what is usual"
    advance(cell, key, worker)
    assert after(290.0) == 0, "an epoch takes 30 s"
    assert after(20.0) == 1
    assert f"{key} on worker-3 has made no step for 5 min, where an epoch usually takes 30 s" in told[0]
    assert after(1000.0) == 1, "it is said once"
    advance(cell, key, worker)
    assert after(310.0) == 2, "and again where it stands still again"
    other, second = begin()
    advance(cell, key, worker)
    advance(cell, other, second)
    assert after(310.0) == 3, "of a pack once for all"
    assert f"{key}, {other} on worker-3 have made no step for 5 min" in told[2]


def test_what_a_study_has_used_is_in_its_record(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, study(trials=2, confirm_top=0))
    drive(cell)
    record = StudyRecord(tmp_path, read_journal(tmp_path / JOURNAL))
    assert record.usage.seconds() == pytest.approx(record.last_time - float(record.first_opened.time or 0.0))
    assert record.usage.gpu_seconds() == 0.0
