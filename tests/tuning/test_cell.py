"""A study as a state machine: its plan, and that a kill at any moment changes nothing."""

from __future__ import annotations

import contextlib
import random
import shutil
from pathlib import Path

import pytest

from captune.records import JOURNAL, Journal, State
from captune.records.events import Chosen, SealOpened, StudyOpened
from captune.tuning.cell import Cell
from tests.journals import journal_lines
from tests.slow import slow_but
from tests.tuning.fakes import FakeTrial, info, study
from tests.tuning.simulate import Killed, advance, drive, epochs, make_cell, outcomes


@pytest.fixture
def uninterrupted(tmp_path: Path) -> Path:
    directory = tmp_path / "whole"
    directory.mkdir()
    drive(make_cell(directory))
    return directory


def finished_by_key(directory: Path) -> dict[str, dict]:
    return {end["key"]: end for end in outcomes(directory)}


def test_references_come_first_then_the_papers_configuration_then_the_sampler(uninterrupted: Path) -> None:
    planned = [e for e in journal_lines(uninterrupted / JOURNAL) if e["event"] == "planned"]
    assert [e["key"] for e in planned[:4]] == ["zero_shot", "balanced", "t0000", "t0001"]
    assert planned[2]["origin"] == "default"
    assert planned[2]["config"] == info().base.model_dump(mode="json")
    assert [e["number"] for e in planned if e["phase"] == "search"] == list(range(8))
    assert {e["origin"] for e in planned[3:10]} == {"sampler"}


def test_every_configuration_is_confirmed_over_the_same_fresh_seeds(uninterrupted: Path) -> None:
    confirmed = [end for end in outcomes(uninterrupted) if end["phase"] == "confirm"]
    seeds: dict[int, list[int]] = {}
    for end in confirmed:
        seeds.setdefault(end["config_id"], []).append(end["seed"])
    assert all(found == [1, 2] for found in seeds.values())
    assert 0 in seeds, "the first configuration is always confirmed"
    assert len(seeds) in (2, 3)
    search = [end for end in outcomes(uninterrupted) if end["phase"] == "search"]
    best = max((end for end in search if end["state"] == State.COMPLETE), key=lambda end: end["score"])
    assert best["config_id"] in seeds
    assert all(end["config"] == search[end["config_id"]]["config"] for end in confirmed)


def test_a_closed_study_stays_as_it_was_until_it_is_searched_further(uninterrupted: Path) -> None:
    closing = make_cell(uninterrupted)
    closing.write(Chosen(advice="keep zero-shot", name="zero_shot"))
    closing.write(SealOpened())
    closing.close()
    before = outcomes(uninterrupted)
    base = info().base
    later = info(references=(*info().references, ("anchored", "anchored", base)))  # a captune that compares with more
    drive(make_cell(uninterrupted, facts=later))
    assert outcomes(uninterrupted) == before
    drive(make_cell(uninterrupted, study(trials=9, confirm_top=2, confirm_seeds=2), facts=later))
    added = {end["key"] for end in outcomes(uninterrupted)} - {end["key"] for end in before}
    assert {"anchored", "t0008"} <= added


def test_weak_trials_stop_and_the_papers_references_and_confirmations_never_do(tmp_path: Path) -> None:
    drive(make_cell(tmp_path, study(trials=25, confirm_top=2, confirm_seeds=2)))
    stopped = [end for end in outcomes(tmp_path) if end["state"] == State.PRUNED]
    assert stopped
    assert all(end["phase"] == "search" and end["origin"] == "sampler" and end["fidelity"] < 1 for end in stopped)
    assert all("below the rung's median" in end["reason"] for end in stopped)


def test_no_trial_stops_without_a_scheduler(tmp_path: Path) -> None:
    drive(make_cell(tmp_path, study(trials=25, confirm_top=0, scheduler="none")))
    assert {end["state"] for end in outcomes(tmp_path)} == {State.COMPLETE}


@pytest.mark.parametrize("first", slow_but(lambda first: first == 1, [1, 6]))
def test_a_kill_after_any_report_changes_nothing(uninterrupted: Path, tmp_path: Path, first: int) -> None:
    expected, expected_epochs = outcomes(uninterrupted), epochs(uninterrupted)
    for kill_after in range(first, len(expected_epochs) + 4, 10):
        directory = tmp_path / f"killed{kill_after}"
        directory.mkdir()
        with contextlib.suppress(Killed):
            drive(make_cell(directory), kill_after=kill_after)
        drive(make_cell(directory))
        assert outcomes(directory) == expected
        assert epochs(directory) == expected_epochs
        shutil.rmtree(directory)


def test_a_power_cut_at_any_byte_of_the_journal_changes_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    data = (uninterrupted / JOURNAL).read_bytes()
    expected = outcomes(uninterrupted)
    draw = random.Random(7)
    cuts = {data.index(b"\n", draw.randrange(len(data) - 1)) + 1 for _ in range(4)}
    cuts |= {draw.randrange(1, len(data)) for _ in range(4)}
    for cut in sorted(cuts):
        directory = tmp_path / f"cut{cut}"
        directory.mkdir()
        (directory / JOURNAL).write_bytes(data[:cut])
        drive(make_cell(directory))
        assert [{**end, "node": None} for end in outcomes(directory)] == [{**end, "node": None} for end in expected]
        shutil.rmtree(directory)


@pytest.mark.parametrize("seed", range(5))
def test_kills_with_several_runs_at_once_lose_and_repeat_nothing(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    settings = study(trials=10, confirm_top=2, confirm_seeds=2)
    ended: dict[str, dict] = {}
    while True:
        cell = make_cell(tmp_path, settings)
        try:
            drive(cell, concurrency=3, order=draw, kill_after=draw.randrange(1, 15))
        except Killed:
            now = finished_by_key(tmp_path)
            assert {key: now[key] for key in ended} == ended, "what has ended stays as it was"
            ended = now
            continue
        break
    numbers = [end["number"] for end in outcomes(tmp_path) if end["phase"] == "search"]
    assert sorted(numbers) == list(range(10))


def test_extending_a_finished_study_is_the_longer_study_without_repeats(tmp_path: Path) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    short.mkdir()
    long.mkdir()
    drive(make_cell(short, study(trials=5, confirm_top=1, confirm_seeds=1)))
    drive(make_cell(short, study(trials=12, confirm_top=1, confirm_seeds=1)))
    drive(make_cell(long, study(trials=12, confirm_top=1, confirm_seeds=1)))
    searched = [[end for end in outcomes(d) if end["phase"] == "search"] for d in (short, long)]
    assert searched[0] == searched[1]
    assert len({tuple(end["params"].items()) for end in searched[0]}) == 12


def test_a_study_in_which_everything_fails_the_same_way_gives_up_and_says_why(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, facts=info(references=()))
    drive(cell, fail="t")
    assert cell.finished
    assert cell.given_up is not None and "the loss must stay finite" in cell.given_up
    assert len(outcomes(tmp_path)) == 3
    assert journal_lines(tmp_path / JOURNAL)[-1]["event"] == "given_up"


def test_a_resumed_study_that_had_given_up_tries_again(tmp_path: Path) -> None:
    drive(make_cell(tmp_path, facts=info(references=())), fail="t")
    cell = make_cell(tmp_path, facts=info(references=()))
    drive(cell)
    assert cell.given_up is None
    states = [end["state"] for end in outcomes(tmp_path) if end["phase"] == "search"]
    assert states[:3] == [State.FAILED] * 3 and State.COMPLETE in states and len(states) == 8


def test_one_failed_trial_keeps_its_reason_and_the_study_goes_on(tmp_path: Path) -> None:
    drive(make_cell(tmp_path), fail="t0002")
    ends = finished_by_key(tmp_path)
    assert ends["t0002"]["state"] == State.FAILED
    assert ends["t0002"]["reason"] == "the loss must stay finite, but got nan."
    assert ends["t0002"]["traceback"] == "tail"
    assert ends["t0007"]["state"] in (State.COMPLETE, State.PRUNED)


def test_a_crashed_run_is_tried_again_and_a_preempted_one_for_free(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, study(trials=1, confirm_top=0, max_failures=1), info(references=()))
    for preempted in (True, True, False):
        run = cell.next_trial()
        assert run is not None and run.key == "t0000"
        cell.start(run.key, None)
        cell.crash(run.key, "the worker died", node="n", preempted=preempted)
    run = cell.next_trial()
    assert run is not None
    cell.start(run.key, None)
    cell.crash(run.key, "the worker died", node="n", preempted=False)
    end = finished_by_key(tmp_path)["t0000"]
    assert end["state"] == State.FAILED
    assert end["reason"] == "its process died 2 times: the worker died"
    started = [e["attempt"] for e in journal_lines(tmp_path / JOURNAL) if e["event"] == "started"]
    assert started == [1, 2, 3, 4]


def test_a_report_made_twice_counts_once(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, study(trials=1, confirm_top=0), info(references=()))
    run = cell.next_trial()
    assert run is not None
    row = {"epoch": 1, "fidelity": 0.25, "score": 0.5, "seconds": 2.0}
    assert not cell.deliver(run.key, {"rows": [row]})
    assert not cell.deliver(run.key, {"rows": [row]})
    assert run.seconds_so_far == 2.0
    assert sum(e["event"] == "epoch" for e in journal_lines(tmp_path / JOURNAL)) == 1


def test_a_trial_without_a_selection_score_fails_and_says_which(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, study(trials=1, confirm_top=0), info(references=()))
    run = cell.next_trial()
    assert run is not None
    cell.deliver(run.key, {"rows": [], "outcome": {"score": None, "scores": {}}})
    assert finished_by_key(tmp_path)["t0000"]["reason"] == "the selection score 'fake' must be a number, but got none."


def test_cells_that_hide_classes_are_confirmed_in_both_roles(tmp_path: Path) -> None:
    drive(make_cell(tmp_path, study(trials=3, confirm_top=1, confirm_seeds=1), info(both_roles=True)))
    keys = {end["key"] for end in outcomes(tmp_path) if end["phase"] == "confirm"}
    assert keys and all(key + "-report" in keys for key in keys if not key.endswith("-report"))


def test_racing_spares_clear_losers_the_remaining_seeds(tmp_path: Path) -> None:
    drive(make_cell(tmp_path, study(trials=12, confirm_top=3, confirm_seeds=5)))
    runs: dict[int, int] = {}
    for end in outcomes(tmp_path):
        if end["phase"] == "confirm":
            runs[end["config_id"]] = runs.get(end["config_id"], 0) + 1
    assert runs[0] == 5, "the first configuration is never dropped"
    assert set(runs.values()) <= {3, 5} and 3 in runs.values()


@pytest.mark.parametrize("settings", [{"confirm_top": 3, "confirm_seeds": 5}, {"confirm_top": 1, "confirm_seeds": 2}])
def test_the_count_of_confirmations_to_come_is_right_from_the_searchs_end_on(
    tmp_path: Path, settings: dict[str, int]
) -> None:
    cell = make_cell(tmp_path, study(trials=12, **settings))
    counts = []
    while (trial := cell.next_trial()) is not None:
        worker = FakeTrial(cell.spec(trial, threads=1))
        while not advance(cell, trial.key, worker):
            continue
        if cell.search_done:
            counts.append(cell.num_confirmations())
    assert counts[-1] == sum(end["phase"] == "confirm" for end in outcomes(tmp_path))
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == (2 if settings["confirm_seeds"] == 5 else 1), "only a race takes some away"


def test_the_choice_is_stressed_on_harder_pools(tmp_path: Path) -> None:
    drive(make_cell(tmp_path, study(trials=3, confirm_top=1, confirm_seeds=1, stress=True)))
    stressed = [end for end in outcomes(tmp_path) if end["phase"] == "stress"]
    assert {tuple(end["task_overrides"].items()) for end in stressed} == {
        (("pool_imbalance", 10.0),), (("pool_imbalance", 50.0),), (("pool_fraction", 0.25),), (("pool_fraction", 0.5),),
        (("present_fraction", 0.3),), (("open_set_fraction", 0.2),),
    }  # fmt: skip


def test_warm_starts_follow_the_papers_configuration(tmp_path: Path) -> None:
    from captune.space import load_space
    from tests.tuning.fakes import space_path

    base = info().base
    settings = study(trials=4, confirm_top=0)
    cell = Cell(
        tmp_path, settings, info(), load_space(space_path(tmp_path), base),
        warm_starts=[{"learning_rate": 5.0, "epochs": 3, "margin_scale": 2}],
    )  # fmt: skip
    cell.open(Journal(tmp_path / JOURNAL, durable=False), StudyOpened())
    drive(cell)
    second = finished_by_key(tmp_path)["t0001"]
    assert second["origin"] == "warm_start"
    assert second["params"] == {"learning_rate": 0.1, "weight_decay": base.weight_decay, "epochs": 3}


def test_a_chained_cell_starts_from_the_best_of_the_one_before(tmp_path: Path) -> None:
    first_dir, second_dir = tmp_path / "a", tmp_path / "b"
    first_dir.mkdir()
    second_dir.mkdir()
    settings = study(trials=5, confirm_top=0)
    first, second = make_cell(first_dir, settings), make_cell(second_dir, settings, info("b"))
    second.after = first
    while (run := second.next_trial()) is not None:
        worker_done = False

        worker = FakeTrial(second.spec(run, threads=1))
        while not worker_done:
            worker_done = advance(second, run.key, worker)
    assert not second.finished and not second.search, "the search waits for the cell before"
    drive(first)
    drive(second)
    best = max((e for e in outcomes(first_dir) if e["phase"] == "search" and e["state"] == State.COMPLETE),
               key=lambda e: e["score"])  # fmt: skip
    assert finished_by_key(second_dir)["t0001"]["params"] == best["params"]


@pytest.mark.parametrize("sampler", ["random", "qmc", "nsga2", "gp"])
def test_every_sampler_resumes_as_if_nothing_had_happened(tmp_path: Path, sampler: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    settings = study(trials=9, confirm_top=0, sampler=sampler, scheduler="none")
    drive(make_cell(whole, settings))
    for kill_after in (9, 7, 12):
        with pytest.raises(Killed):
            drive(make_cell(killed, settings), kill_after=kill_after)
    drive(make_cell(killed, settings))
    assert outcomes(killed) == outcomes(whole)


def test_two_objectives_are_told_to_the_sampler_and_resume_alike(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    settings = study(trials=9, confirm_top=1, objectives="balance")
    drive(make_cell(whole, settings))
    with pytest.raises(Killed):
        drive(make_cell(killed, settings), kill_after=20)
    drive(make_cell(killed, settings))
    assert outcomes(killed) == outcomes(whole)
    assert all(end["state"] == State.COMPLETE for end in outcomes(whole)), "no early stopping with two objectives"


def test_ensv_scores_candidates_by_the_vote_of_all_and_resumes_alike(tmp_path: Path) -> None:
    import numpy as np
    import safetensors.numpy

    predictions = {"zero_shot": [0, 0, 1, 1], "balanced": [0, 1, 1, 1], "t0000": [0, 0, 1, 0], "t0001": [1, 1, 1, 1]}

    def run_all(cell: Cell, count: int = 9) -> None:
        for _ in range(count):
            run = cell.next_trial()
            if run is None:
                return
            worker = FakeTrial(cell.spec(run, threads=1))
            probs_NK = np.eye(2, dtype=np.float16)[predictions[run.key]]
            safetensors.numpy.save_file({"holdout_probs": probs_NK}, worker.spec.path / "predictions.safetensors")
            while not advance(cell, run.key, worker):
                continue

    scores = []
    for name, stops in (("whole", [9]), ("killed", [3, 9])):
        directory = tmp_path / name
        directory.mkdir()
        for count in stops:
            cell = make_cell(directory, study(trials=2, confirm_top=0), info(criterion="ensv"))
            run_all(cell, count)
        scores.append([end["score"] for end in outcomes(directory)])
        # Votes of all four: image 0: class 0 (3 of 4), 1: a tie, class 0; 2: class 1; 3: class 1 (3 of 4).
        assert [trial.score for trial in cell._search.scored()] == [0.75, 0.5]
    # Each at its moment: alone 1; then ties to class 0 against [0,1,1,1]; then with t0000; then with all.
    assert scores[0] == scores[1] == [1.0, 0.75, 0.75, 0.5]
