"""What a search costs until it is near the best known: worked by hand over journals of a few trials."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from captune.errors import RecordError
from captune.records import JOURNAL, Journal
from tests.bench.search_cost import compare, ended_trials, main, summary
from tests.journals import append

Row = tuple[str, int, float | None, str]


def study(directory: Path, seed: int, trials: list[Row], *, seconds: dict[str, float]) -> Path:
    """A journal of trials (phase, epochs, score, state); an epoch of a phase takes so many seconds."""
    directory.mkdir()
    journal = Journal(directory / JOURNAL, durable=False)
    append(journal, "study_opened", study={"seed": seed})
    for number, (phase, epochs, score, state) in enumerate(trials):
        key = f"{phase}{number}"
        tuning = "features" if phase == "screen" else "prompts"
        append(journal, "planned", key=key, phase=phase, config={"tuning": tuning})
        for epoch in range(1, epochs + 1):
            append(journal, "epoch", key=key, epoch=epoch)
        append(journal, "finished", key=key, state=state, score=score, seconds=epochs * seconds[phase])
    journal.close()
    return directory


def searched(epochs: int, score: float | None, state: str = "COMPLETE") -> Row:
    return "search", epochs, score, state


SECONDS = {"screen": 0.5, "search": 10.0, "reference": 0.0}


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    # Random: 4 trials of 12 epochs, 120 s each; the third comes within half a point of 0.850.
    full = study(
        tmp_path / "full", 7, [("reference", 0, 0.9, "COMPLETE"), *(searched(12, s) for s in (0.8, 0.83, 0.846, 0.81))],
        seconds=SECONDS,
    )  # fmt: skip
    # Screened: 6 screening trials of 4 epochs (12 s together), one stopped after 3 epochs (30 s), the best (120 s).
    rows: list[Row] = [("screen", 4, 0.99, "COMPLETE")] * 6
    rows += [searched(3, 0.849, "PRUNED"), searched(12, 0.85), searched(12, 0.7)]
    return full, study(tmp_path / "screened", 7, rows, seconds=SECONDS)


def test_cost_runs_until_a_whole_search_trial_is_near_and_the_screen_is_paid_for(both: tuple[Path, Path]) -> None:
    full, screened = compare([both[0]], [both[1]])
    assert (full.best_known, screened.best_known) == (0.85, 0.85)
    assert (full.near, full.seconds, full.search_trials) == (True, 360.0, 3)
    # Neither a screening score of 0.99 nor a stopped trial's 0.849 is a result.
    assert (screened.seconds, screened.screening_trials, screened.search_trials) == (6 * 4 * 0.5 + 30 + 120, 6, 2)
    # One hit among four in random order: on average the (4 + 1) / (1 + 1)th draw.
    assert full.expected_seconds == pytest.approx(2.5 * 120)
    assert screened.expected_seconds is None
    told = summary([full, screened])
    assert told["ratio"] == pytest.approx(162 / 360) and told["ratio_expected"] == pytest.approx(162 / 300)


def test_a_study_that_never_comes_near_pays_for_all_it_ran(both: tuple[Path, Path], tmp_path: Path) -> None:
    poor = study(tmp_path / "poor", 7, [searched(12, 0.7), searched(12, 0.71)], seconds=SECONDS)
    cost = compare([poor], [both[1]])[0]
    assert not cost.near and cost.seconds == 240.0 and cost.expected_seconds == 240.0


def test_epochs_are_priced_at_the_mean_of_their_kind_so_that_a_busy_hour_favours_nobody(tmp_path: Path) -> None:
    slow = study(tmp_path / "slow", 1, [searched(10, 0.8)], seconds={"search": 30.0})
    fast = study(tmp_path / "fast", 1, [searched(10, 0.8)], seconds={"search": 10.0})
    assert [cost.seconds for cost in compare([slow], [fast])] == [200.0, 200.0]


def test_studies_of_different_seeds_do_not_compare(both: tuple[Path, Path], tmp_path: Path) -> None:
    other = study(tmp_path / "other", 8, [searched(12, 0.8)], seconds=SECONDS)
    with pytest.raises(RecordError, match="both ways must have studies of one seed"):
        compare([other], [both[1]])
    empty = tmp_path / "empty"
    empty.mkdir()
    Journal(empty / JOURNAL, durable=False).close()
    with pytest.raises(RecordError, match="must say which study it is"):
        ended_trials(empty)


def test_the_command_prints_every_study_and_writes_them(
    both: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: list[Any] = ["--full", both[0], "--screened", both[1], "--csv", tmp_path / "out.csv"]
    main([str(argument) for argument in arguments])
    printed = capsys.readouterr().out
    assert "screened seed 7: best 0.8500 of 0.8500; near after 162 s (6 screening, 2 search trials)" in printed
    assert "mean of 1: 162 s screened, 360 s full (300 s over all orders): 0.45 (0.54)" in printed
    with (tmp_path / "out.csv").open() as file:
        assert [row["way"] for row in csv.DictReader(file)] == ["full", "screened"]
