"""Trials on frozen features go to a worker several at once; what each of them comes to is what it comes to alone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from ray.exceptions import RayTaskError

from captune.algorithms.configs import CapConfig
from captune.config import StudyConfig, TaskConfig
from captune.records import JOURNAL, Phase, Role, State, Trial
from captune.records.layout import TRIAL_LOCK
from captune.studies.planning import plan_study
from captune.training import trial as trial_module
from captune.tuning.allotment import block_size, most_packed
from captune.tuning.cell import Cell
from captune.tuning.open_study import OpenStudy
from captune.tuning.pack_members import next_pack
from captune.tuning.planner import Planner
from captune.tuning.specs import TrialSpec
from captune.tuning.trainable import PAYLOAD, SPEC, StudyTrainable, open_trial_anywhere
from tests.journals import journal_lines
from tests.slow import in_one_test
from tests.studies.lives import run_trials, settings
from tests.tuning.fakes import FakeTrial, info
from tests.tuning.simulate import make_cell


def packable(
    directory: Path, *, most: int = 4, tuning: Literal["prompts", "features"] = "features", **settings: Any
) -> Cell:
    """A cell of CAP on frozen features over a space of three parameters."""
    both_roles = bool(settings.pop("both_roles", False))
    directory.mkdir(exist_ok=True)
    base = CapConfig(tuning=tuning, epochs=4, weight_decay=0.01)
    study = StudyConfig(
        task=TaskConfig(dataset="fake", paradigm="ul"), method="cap", **{"trials": 10, "confirm_top": 0} | settings
    )
    return make_cell(directory, study, info(base=base, references=(), most_packed=most, both_roles=both_roles))


def end(cell: Cell, pack: list[Trial], score: float = 0.5) -> None:
    for trial in pack:
        cell.deliver(trial.key, {"outcome": {"score": score, "scores": {}}})


@in_one_test(
    ("trials", "most", "size"), [(12, 8, 6), (100, 8, 8), (24, 8, 6), (3, 8, 2), (1, 8, 1), (5, 1, 1), (17, 8, 5)]
)
def test_blocks_are_even_and_as_many_for_each_worker(trials: int, most: int, size: int) -> None:
    # 100 trials in blocks of at most 8: 2·⌈100/16⌉ = 14 blocks, of ⌈100/14⌉ = 8.
    assert block_size(trials, most) == size <= most


@pytest.mark.parametrize(("workers", "size"), [(1, 6), (2, 3), (4, 2), (16, 1)])
def test_each_worker_gets_two_blocks_of_twelve_trials_where_there_are_enough(workers: int, size: int) -> None:
    assert block_size(12, 8, workers=workers, rounds=2) == size


def test_large_features_are_packed_by_fewer() -> None:
    assert [most_packed(images, 512) for images in (1_800, 50_000, 1_280_000)] == [8, 2, 1]
    assert most_packed(30_000, None) == 2, "a width that nobody knows yet is taken to be a large one"


def test_a_study_hands_out_its_search_in_blocks(tmp_path: Path) -> None:
    cell = packable(tmp_path)
    packs = []
    while pack := next_pack(cell):
        packs.append([trial.number for trial in pack])
        end(cell, pack)
    # ⌈10/(2·4)⌉ = 2, so four blocks of ⌈10/4⌉ = 3.
    assert packs == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_nothing_is_packed_where_it_must_not_be(tmp_path: Path) -> None:
    assert len(next_pack(packable(tmp_path / "a"), packed=False)) == 1
    assert len(next_pack(packable(tmp_path / "b", most=1))) == 1
    assert len(next_pack(packable(tmp_path / "c", tuning="prompts"))) == 1


def test_a_second_block_is_proposed_when_a_first_one_has_ended(tmp_path: Path) -> None:
    cell = packable(tmp_path, most=8, trials=12)
    first, second = next_pack(cell), next_pack(cell)
    assert [trial.number for trial in (*first, *second)] == list(range(6)), "two workers are blind for six trials"
    assert [trial.number for trial in next_pack(packable(tmp_path / "short", most=8, trials=6))] == [0, 1, 2]
    end(cell, first)
    third = next_pack(cell)
    assert [trial.number for trial in third] == [6, 7, 8] and all(trial.ended for trial in first)
    lone = packable(tmp_path / "lone", most=8, trials=12)
    assert [len(next_pack(lone, workers=1)) for _ in range(2)] == [6, 6]


def test_confirmations_of_both_roles_are_packed_role_by_role(tmp_path: Path) -> None:
    cell = packable(tmp_path, most=8, trials=6, confirm_top=2, confirm_seeds=5, both_roles=True)
    for number in range(2):
        end(cell, next_pack(cell), score=0.5 + number / 10)
    packs = [next_pack(cell) for _ in range(4)]
    # Three configurations with three seeds, in two roles, before the race: blocks of ⌈9/2⌉.
    roles = [[trial.role for trial in pack] for pack in packs]
    assert roles == [[Role.SCORE] * 5, [Role.SCORE] * 4, [Role.REPORT] * 5, [Role.REPORT] * 4]
    assert not next_pack(cell), "the race waits for its trials"
    for pack in packs:
        end(cell, pack)
    # All score alike, so none drops out: two more seeds of three.
    assert [len(next_pack(cell)) for _ in range(5)] == [3, 3, 3, 3, 0]


def test_seeds_of_confirmed_configurations_are_packed_for_two_workers_and_phases_are_not_mixed(tmp_path: Path) -> None:
    cell = packable(tmp_path, most=8, trials=3, confirm_top=2, confirm_seeds=2)
    seen = []
    while pack := next_pack(cell):
        assert len({(trial.phase, trial.role) for trial in pack}) == 1
        seen.append((pack[0].phase, len(pack)))
        end(cell, pack)
    # The first is among the best two, so that two configurations with two seeds are confirmed: blocks of two.
    assert seen == [(Phase.SEARCH, 2), (Phase.SEARCH, 1), (Phase.CONFIRM, 2), (Phase.CONFIRM, 2)]
    assert all(trial.role is Role.SCORE for trial in cell.trials.values())


def test_a_killed_study_packs_on_without_proposing_more_than_it_would_have(tmp_path: Path) -> None:
    """What TPE knew at each proposal is the same: none of a block is proposed after one of it has ended."""
    whole = packable(tmp_path / "whole", trials=12)
    while pack := next_pack(whole):
        end(whole, pack, score=float(pack[0].number or 0))
    cell = packable(tmp_path / "cut", trials=12)
    end(cell, next_pack(cell), score=0.0)
    half_planned = [cell.next_trial() for _ in range(2)]
    assert all(half_planned)
    cell.close()
    again = packable(tmp_path / "cut", trials=12)
    while pack := next_pack(again):
        end(again, pack, score=float(pack[0].number or 0))
    assert {k: t.params for k, t in again.trials.items()} == {k: t.params for k, t in whole.trials.items()}


def test_the_trials_of_a_pack_whose_process_dies_are_tried_again_one_by_one(tmp_path: Path) -> None:
    cell = packable(tmp_path, most=8, trials=6)
    planner = Planner([cell])
    first = TrialSpec.pack_from_json(planner.suggest("a")[SPEC])
    assert len(first) == 3
    planner.started("a", "node")
    planner.lost("a", RuntimeError("can't allocate memory"), None)
    assert all(cell.trials[spec.key].crashes == 1 for spec in first)
    for name, spec in zip("bcd", first, strict=True):
        (alone,) = TrialSpec.pack_from_json(planner.suggest(name)[SPEC])
        assert alone.key == spec.key and alone.attempt == 2
    planner.lost("b", RuntimeError("can't allocate memory"), None)
    assert [cell.trials[spec.key].state for spec in first] == [State.FAILED, State.RUNNING, State.RUNNING]
    assert len(TrialSpec.pack_from_json(planner.suggest("e")[SPEC])) == 3, "the others are packed as ever"


def worker(directory: Path, *, epochs: tuple[int, ...] = (4, 4), reported: int = 0, **manners: Any) -> StudyTrainable:
    """An actor that trains quick trials, by turns."""
    specs = [
        TrialSpec(
            cell="fake", key=f"t{number:04d}", directory=str(directory / str(number)), method="fake", task={}, seed=0,
            role=Role.SCORE, config=info(epochs=count).base.model_dump(mode="json"), select_by="auto",
            reported=reported, attempt=1, threads=1,
        )
        for number, count in enumerate(epochs)
    ]  # fmt: skip
    trainable = StudyTrainable.__new__(StudyTrainable)
    trainable.setup({SPEC: TrialSpec.pack_to_json(specs)}, open_trial=partial(FakeTrial, **manners))
    return trainable


def told(trainable: StudyTrainable) -> list[tuple[str, list[int], str]]:
    """A report: key, epochs, how it ended."""
    report = json.loads(trainable.step()[PAYLOAD])["told"]
    return [
        (each["key"], [row["epoch"] for row in each["rows"]], next(iter({"outcome", "failed"} & each.keys()), ""))
        for each in report
    ]


@pytest.fixture
def by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick trials cannot be trained together: each trains its epoch."""

    def run_each(trials: list[FakeTrial]) -> list[Any]:
        found: list[Any] = []
        for trial in trials:
            try:
                found.append(trial.run_epoch())
            except Exception as error:
                found.append(error)
        return found

    monkeypatch.setattr(trial_module, "run_epochs_together", run_each)


@pytest.mark.usefixtures("by_turns")
def test_a_pack_is_told_epoch_by_epoch_and_each_trial_ends_by_itself(tmp_path: Path) -> None:
    pack = worker(tmp_path, epochs=(4, 2, 4), fail="t0002")
    assert told(pack) == [("t0002", [], "failed"), ("t0000", [1], ""), ("t0001", [1], "")]
    assert told(pack) == [("t0000", [2], ""), ("t0001", [2], "outcome")]
    assert told(pack) == [("t0000", [3, 4], "outcome")]


@pytest.mark.usefixtures("by_turns")
def test_a_trial_that_the_driver_ends_is_dropped_and_the_others_go_on(tmp_path: Path) -> None:
    pack = worker(tmp_path)
    assert told(pack) == [("t0000", [1], ""), ("t0001", [1], "")]
    (tmp_path / "0" / TRIAL_LOCK).unlink()
    assert told(pack) == [("t0001", [2], "")]
    assert told(pack) == [("t0001", [3, 4], "outcome")]
    assert json.loads((tmp_path / "0" / "resume.json").read_text())["epoch"] == 1


@pytest.mark.usefixtures("by_turns")
def test_a_pack_that_goes_on_with_one_trial_ahead_tells_what_it_would_have_told(tmp_path: Path) -> None:
    ahead = worker(tmp_path, epochs=(4,))
    told(ahead)
    told(ahead)
    ahead.cleanup()
    pack = worker(tmp_path)
    assert told(pack) == [("t0000", [1], ""), ("t0001", [1], "")]
    assert told(pack) == [("t0000", [2], ""), ("t0001", [2], "")]
    assert told(pack) == [
        ("t0000", [3], ""), ("t0001", [3], ""), ("t0000", [4], ""), ("t0001", [4], ""), ("t0000", [], "outcome"),
        ("t0001", [], "outcome"),
    ]  # fmt: skip


def test_memory_that_runs_out_in_a_pack_ends_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cramped(trials: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(trial_module, "run_epochs_together", cramped)
    with pytest.raises(RuntimeError, match="can't allocate"):
        worker(tmp_path).step()


def outcomes(directory: Path) -> dict[str, Any]:
    """What every trial came to, but for clocks."""
    lines = [line for line in journal_lines(directory / JOURNAL) if line["event"] in ("epoch", "finished")]
    kept: dict[str, Any] = {}
    for line in lines:
        values = {k: v for k, v in line.items() if k not in ("time", "seconds", "node", "memory_bytes", "decision")}
        kept.setdefault(line["key"], []).append(values)
    return kept


def test_a_study_in_packs_is_the_study_trial_by_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On real digits, to the last bit; the first six trials are drawn before a sampler knows anything."""
    study = settings("ul", trials=6, confirm_top=1, confirm_seeds=2, scheduler="none")
    run_trials(plan_study(study, tmp_path / "packs")).close()
    sizes: list[int] = []

    def one_by_one(cell: Cell) -> list[Trial]:
        sizes.append(1)
        return next_pack(cell, packed=False)

    monkeypatch.setattr("tests.studies.lives.next_pack", one_by_one)
    run_trials(plan_study(study, tmp_path / "single")).close()
    assert len(sizes) > 8
    assert outcomes(tmp_path / "packs") == outcomes(tmp_path / "single")


def test_a_study_killed_within_a_pack_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    study = settings("ul", trials=4, confirm_top=1, confirm_seeds=2)
    plan = plan_study(study, tmp_path / "whole")
    run_trials(plan).close()
    plan = plan_study(study, tmp_path / "cut")
    opened = OpenStudy(plan.directory, plan.study, plan.info, plan.space, durable=False)
    packs = 0
    while pack := next_pack(opened.cell):
        packs += len(pack) > 1
        actor = StudyTrainable.__new__(StudyTrainable)
        specs = [opened.cell.spec(trial, threads=1) for trial in pack]
        actor.setup({SPEC: TrialSpec.pack_to_json(specs)}, open_trial=open_trial_anywhere)
        payload = json.loads(actor.step()[PAYLOAD])
        for number, each in enumerate(payload["told"]):
            if packs == 2 and number == 1:
                break  # killed between two trials of one report
            opened.cell.deliver(each["key"], each | {"node": payload["node"]})
        actor.cleanup()
        if packs == 2:
            break
        while not all(trial.ended for trial in pack):
            actor.setup(
                {SPEC: TrialSpec.pack_to_json([opened.cell.spec(t, threads=1) for t in pack if not t.ended])},
                open_trial=open_trial_anywhere,
            )
            payload = json.loads(actor.step()[PAYLOAD])
            for each in payload["told"]:
                opened.cell.deliver(each["key"], each | {"node": payload["node"]})
            actor.cleanup()
    assert packs == 2
    opened.close()
    run_trials(plan_study(study, tmp_path / "cut"), resume=True).close()
    kinds = ("planned", "epoch", "finished")
    said = [
        [(line["event"], line["key"], line.get("epoch"), line.get("score")) for line in journal_lines(path / JOURNAL)
         if line["event"] in kinds]
        for path in (tmp_path / "whole", tmp_path / "cut")
    ]  # fmt: skip
    assert said[0] == said[1]


def test_where_a_worker_raised_the_reason_is_what_it_raised_not_who_it_was(tmp_path: Path) -> None:
    cell = packable(tmp_path)
    planner = Planner([cell])
    assert planner.suggest("tune-1") is not None
    error = RayTaskError(
        "train", "Traceback (most recent call last):\n  in step\nRuntimeError: no CUDA", RuntimeError()
    )
    planner.lost("tune-1", error, None)
    reasons = {line["reason"] for line in journal_lines(tmp_path / JOURNAL) if line["event"] == "crashed"}
    assert reasons == {"RuntimeError: no CUDA"}
