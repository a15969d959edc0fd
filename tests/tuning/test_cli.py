"""captune run, resume and status as a person meets them (no Ray is started here)."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from rich.console import Console

from captune.cli.dry_run import first_configurations
from captune.cli.main import main
from captune.cli.options import Given
from captune.cli.run import StudyFile, _datasets, _matrix, _studies
from captune.cli.status import read_standing
from captune.cli.studies import execute
from captune.config import StudyConfig, TaskConfig
from captune.data.catalog import DATASETS
from captune.errors import StudyError, UsageError
from captune.space import load_space
from captune.studies.planning import Plan, best_configs, plan_study
from captune.studies.running import Settings, run_studies
from captune.tuning.cell import Cell
from tests.tuning.fakes import info, space_path, study
from tests.tuning.simulate import drive, outcomes
from tests.tuning.test_open_study import open_study, run_study

DIGITS = ["run", "--dataset", "digits", "--paradigm", "ul"]


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of a cell that is made up are nowhere: nobody asks for them."""
    monkeypatch.setattr("captune.studies.running.fetch_weights_here", lambda plans: None)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    return int(caught.value.code or 0), " ".join((captured.out + captured.err).split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--dataset", "digts", "--paradigm", "ul"], "'digits'"),
        (["run", "--dataset", "digits", "--paradigm", "tfz"], "Did you mean 'tft'?"),
        ([*DIGITS, "--method", "capp"], "Did you mean 'cap'?"),
        ([*DIGITS, "--sampler", "tpr"], "Did you mean 'tpe'?"),
        ([*DIGITS, "--scheduler", "ash"], "Did you mean 'asha'?"),
        ([*DIGITS, "--trails", "3"], "--trials"),
        ([*DIGITS, "--trials", "0"], "--trials: must be at least 1, got 0"),
        ([*DIGITS, "--select-by", "agre-balanced"], "Did you mean 'agree-balanced'?"),
        ([*DIGITS, "--select-by", "val"], "must be used where the paradigm has such labels"),
        ([*DIGITS, "--logger", "tensorbord"], "Did you mean 'tensorboard'?"),
        ([*DIGITS, "--space", "/nowhere.yaml"], "a configuration file must be readable"),
        ([*DIGITS, "--warm-start", "/nowhere.yaml"], "a configuration file must be readable"),
        (["resume", "/nowhere"], "a study's directory must be there, but got none (in /nowhere)"),
    ],
)
def test_wrong_usage_is_told_with_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], said: str
) -> None:
    if arguments[0] == "run":
        arguments = [*arguments, "--out", str(tmp_path / "run"), "--dry-run"]
    code, output = call(capsys, *arguments)
    assert said in output
    assert code == 2
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["rn"], "Did you mean 'run'?"), (["run"], "--dataset"), (["run", "--dataset"], "--dataset"), ([], "Usage")],
)
def test_a_command_line_that_cannot_be_read_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, output = call(capsys, *arguments)
    assert code == 2
    assert said in output and "not an error captune foresaw" not in output


def test_an_interrupt_while_commands_are_loading_ends_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("captune.cli.main.import_module", interrupted)
    assert call(capsys, "run")[0] == 130


def refusing(error: BaseException) -> Callable[..., bool]:
    def run(*_: object) -> bool:
        raise error

    return run


@pytest.mark.parametrize("there", [False, True])
def test_a_study_that_could_not_begin_leaves_its_directory_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    """A misspelt backbone is found when weights are opened; the corrected command must not meet a study of it."""
    directory = tmp_path / "run"
    if there:
        directory.mkdir()
    facts = info()
    plan = Plan(directory, study(), facts, load_space(space_path(tmp_path), facts.base))
    other = Plan(tmp_path / "other", study(seed=1), facts, plan.space)
    ends = {UsageError("--backbone must name an open_clip model"): UsageError, KeyboardInterrupt(): typer.Exit}
    for error, end in ends.items():
        monkeypatch.setattr("captune.studies.running._run_on_ray", refusing(error))
        with pytest.raises(end):
            execute([plan, other], Settings(), Console())
        assert directory.exists() == there and not other.directory.exists()
        assert not there or not any(directory.iterdir())


def test_studies_before_one_that_is_refused_leave_their_directories_free(tmp_path: Path) -> None:
    run_study(tmp_path / "taken", trials=2, confirm_top=0)
    facts = info()
    space = load_space(space_path(tmp_path), facts.base)
    plans = [Plan(tmp_path / name, study(seed=3), facts, space) for name in ("free", "taken")]
    with pytest.raises(UsageError, match="must hold the same study or none"):
        execute(plans, Settings(), Console())
    assert not (tmp_path / "free").exists()
    assert len(outcomes(tmp_path / "taken")) == 4


def test_a_study_that_begins_on_a_full_disk_leaves_nothing_and_is_told_so(tmp_path: Path) -> None:
    """It was "an error captune did not foresee", and left its folder. A limit on the size of files stands in."""
    facts = info()
    plan = Plan(tmp_path / "my runs" / "run", study(), facts, load_space(space_path(tmp_path), facts.base))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(
            StudyError, match=r"must be readable and writable, but got File too large .*the same command again"
        ):
            run_studies([plan], Settings())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "my runs").exists()


def test_an_interrupt_after_runs_began_keeps_them_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(cells: list[Cell], *_: object) -> bool:
        assert cells[0].next_trial() is not None
        raise KeyboardInterrupt

    monkeypatch.setattr("captune.studies.running._run_on_ray", run)
    facts = info()
    plan = Plan(tmp_path / "run", study(), facts, load_space(space_path(tmp_path), facts.base))
    with pytest.raises(typer.Exit) as caught:
        execute([plan], Settings(), Console())
    assert caught.value.exit_code == 130
    assert f"captune resume {tmp_path / 'run'}" in "".join(capsys.readouterr().out.splitlines())
    assert (tmp_path / "run" / "journal.jsonl").exists()


def test_an_interrupt_of_the_closing_says_what_is_left_and_one_command_for_all_studies(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It promised "the others go on from their last epoch" where no other was left."""

    def interrupted(_directory: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("captune.studies.closing.close_study", interrupted)
    monkeypatch.chdir(tmp_path)
    plans = []
    for name in ("a study", "another"):
        opened = open_study(tmp_path / name, trials=2, confirm_top=0)
        drive(opened.cell)
        opened.close()
        plans.append(Plan(tmp_path / name, opened.cell.study, opened.cell.info, opened.cell.space))
    with pytest.raises(typer.Exit) as caught:
        execute(plans, Settings(resume=True), Console(width=300))
    said = capsys.readouterr().out
    assert caught.value.exit_code == 130
    assert said.count("none is left but the choice and the report") == 2
    assert "Continue with: captune resume 'a study' another\n" in said


def test_a_dry_run_shows_the_study_and_leaves_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, output = call(capsys, *DIGITS, "--out", str(tmp_path / "run"), "--dry-run", "--epochs", "4")
    assert code == 0
    assert "pool 1078, test 539" in output and "agree-balanced" in output and "trial 0" in output
    assert "epochs: {" not in output
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tells_the_configurations_that_will_be_run(tmp_path: Path) -> None:
    facts = info()
    space = load_space(space_path(tmp_path), facts.base)
    run_study(tmp_path / "run", trials=3, confirm_top=0)
    run = [end["params"] for end in outcomes(tmp_path / "run") if end["phase"] == "search"]
    assert first_configurations(space, facts, "tpe", 0, count=3) == run


def eurosat_on_disk(root: Path) -> None:
    """As much of EuroSAT as is looked for before it is read."""
    layout = DATASETS["eurosat"].layouts[0]
    for need in layout.needs:
        path = root / need
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}") if path.suffix else path.mkdir(exist_ok=True)


def test_found_datasets_are_those_on_disk_and_the_others_are_told(tmp_path: Path) -> None:
    eurosat_on_disk(tmp_path)
    values = {"dataset": "found", "paradigm": "ul", "data_root": str(tmp_path)}
    found, missing = _datasets(values, False)
    assert found == ["digits", "eurosat"]
    assert set(found) | set(missing) == set(DATASETS)
    listed = {**values, "dataset": "eurosat,dtd"}
    assert _datasets(listed, False) == (["eurosat", "dtd"], []), "what is asked for by name must be there"
    assert _datasets(listed, True) == (["eurosat"], ["dtd"])
    with pytest.raises(UsageError, match="a dataset must be on disk, but got none of dtd"):
        _datasets({**values, "dataset": "dtd"}, True)


def test_the_papers_datasets_are_its_six_in_its_protocol() -> None:
    studies = _studies(StudyFile(), Given(task={"dataset": "paper", "paradigm": "ul"}), {})
    keys = sorted(study.task.dataset for study in studies)
    assert keys == ["cub200", "dtd", "eurosat", "fgvc_aircraft", "flowers102", "resisc45"]
    assert {study.task.protocol for study in studies} == {"paper"}


def test_a_matrix_is_every_combination_once() -> None:
    assert _matrix(["digits", "eurosat"], "ul,transductive,tft", "cap") == [
        ("digits", "ul", "cap"), ("digits", "tft", "cap"), ("eurosat", "ul", "cap"), ("eurosat", "tft", "cap"),
    ]  # fmt: skip
    assert len(_matrix(["digits"], "all", "all")) >= 4
    with pytest.raises(UsageError, match="--paradigm must name something"):
        _matrix(["digits"], ",", "cap")


def test_a_fork_starts_from_the_best_of_the_study_beside_it(tmp_path: Path) -> None:
    run_study(tmp_path / "run", trials=6, confirm_top=0)
    scores = {
        end["score"]: end["config"]
        for end in outcomes(tmp_path / "run")
        if end["phase"] == "search" and end["state"] == "COMPLETE"
    }
    assert best_configs(tmp_path / "run")[0] == scores[max(scores)]


def test_a_fork_is_a_name_and_no_path(tmp_path: Path) -> None:
    run_study(tmp_path / "run", trials=2, confirm_top=0)
    settings = StudyConfig(task=TaskConfig(dataset="digits", paradigm="ul"), method="cap", trials=2)
    with pytest.raises(UsageError, match=r"a name without a slash, but got '\.\./x'"):
        plan_study(settings, tmp_path / "run", fork="../x")


def test_status_reads_a_study_from_its_directory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run_study(tmp_path / "done", trials=4, confirm_top=1, confirm_seeds=1)
    found, _ = read_standing(tmp_path / "done", running=False)
    assert found.phase == "done" and found.done == found.planned and found.zero_shot == 0.7
    code, output = call(capsys, "status", str(tmp_path / "done"))
    assert code == 0 and "8/8" in output and "before its choice was written" in output


def test_status_tells_a_running_study_from_a_stopped_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    opened = open_study(tmp_path / "half", trials=4, confirm_top=0)
    run = opened.cell.next_trial()
    assert run is not None
    _, output = call(capsys, "status", str(tmp_path / "half"))
    assert "run by process" in output
    opened.close()
    _, output = call(capsys, "status", str(tmp_path / "half"))
    assert "go on with: captune resume" in output.replace("captune resume ", "captune resume ")
    opened = open_study(tmp_path / "half", resume=True, trials=4, confirm_top=0)
    drive(opened.cell)
    opened.close()
