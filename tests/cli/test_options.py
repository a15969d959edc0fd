"""Options are made from configuration fields; a study's own file can be given back; wrong usage needs no PyTorch."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from captune.cli.main import COMMANDS, command
from captune.cli.metavars import opposites_sentence
from captune.cli.options import Given, settings, with_options
from captune.cli.run import StudyFile, _studies
from captune.config import Config, MachineConfig, Panel, StudyConfig, TaskConfig, TrialConfig
from captune.errors import ConfigError, UsageError

CLASSES = (TaskConfig, StudyConfig, TrialConfig, MachineConfig)
RECORDED = Path(__file__).parents[1] / "records" / "fixtures" / "captune-0.1"
DIGITS = {"dataset": "digits", "paradigm": "ul"}


def options_of(name: str) -> dict[str, Any]:
    """Parameter → typer's description of its option."""
    return {
        parameter.name: get_args(parameter.annotation)[1]
        for parameter in inspect.signature(command(name)).parameters.values()
    }


def fields(*classes: type[Config]) -> dict[str, Any]:
    """Fields that are meant to be options."""
    return {
        name: info for cls in classes for name, info in cls.model_fields.items() if Panel(None) not in info.metadata
    }


@pytest.mark.parametrize(
    ("name", "classes", "without"),
    [
        ("run", CLASSES, set()),
        ("compare", CLASSES, {"method", "space", "objectives", "storage"}),
        ("adapt", (TaskConfig, TrialConfig), set()),
        ("resume", (MachineConfig,), set()),
    ],
)
def test_every_field_is_an_option_with_its_description(
    name: str, classes: tuple[type[Config], ...], without: set[str]
) -> None:
    options = options_of(name)
    for field, info in fields(*classes).items():
        if field in without:
            continue
        text = info.description
        assert text, f"{field} has no description"
        assert options[field].help.startswith(text[0].upper() + text[1:]), field
        assert options[field].rich_help_panel, field


def test_fields_that_are_no_options_are_none() -> None:
    assert not {"task", "fixed", "unseal_pool"} & options_of("run").keys()


_PROGRAM = """
import json, os, sys
import captune.cli.adapt, captune.cli.compare, captune.cli.report, captune.cli.run
from captune.cli.main import main

for arguments in json.loads(sys.stdin.read()):
    sys.stdout.flush()
    if os.fork():
        os.wait()
        continue
    code = 0
    try:
        main(arguments)
    except SystemExit as end:
        code = end.code or 0
    heavy = {"torch", "ray", "optuna", "pandas", "scipy", "scipy.stats", "sklearn", "matplotlib"} & set(sys.modules)
    # Not getrusage: its peak counts what the process that started this one held.
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("ANSWER", code, int(peak) // 1024, *sorted(heavy), flush=True)
    os._exit(0)
"""
Answer = tuple[int, str, set[str], int]


def answers(commands: list[list[str]]) -> list[Answer]:
    """Exit code, output, imported packages and MB of commands, each in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], input=json.dumps(commands), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=100, check=False,
    )  # fmt: skip
    found: list[Answer] = []
    output: list[str] = []
    for line in done.stdout.splitlines():
        if not line.startswith("ANSWER "):
            output.append(line)
            continue
        _, code, peak, *heavy = line.split()
        found.append((int(code), "\n".join(output), set(heavy), int(peak)))
        output = []
    assert len(found) == len(commands), done.stdout
    return found


USAGE = [
    (["run", "--help"], 0, "SETTING=VALUE"),
    (["compare", "--help"], 0, "--confirm-seeds"),
    (["adapt", "--help"], 0, "--tuning"),
    (["report", "--help"], 0, "--out"),
    (["run", *["--dataset", "digits", "--paradigm", "ul", "--trails", "3"]], 2, "--trials"),
    (["run", *["--dataset", "digits", "--paradigm", "ul", "--trials", "0"]], 2, "trials"),
    (["run", *["--dataset", "digts", "--paradigm", "ul"]], 2, "'digits'"),
    (["run", *["--dataset", "digits", "--paradigm", "ul", "--method", "capp"]], 2, "'cap'"),
    (["run", *["--dataset", "digits", "--paradigm", "ul", "--set", "margn_scale=8"]], 2, "'margin_scale'"),
    (["run", *["--dataset", "digits", "--paradigm", "ul", "--epochs", "0"]], 2, "epochs"),
    (["run", *["--dataset", "digits", "--paradigm", "ul", "--concurrency", "0"]], 2, "concurrency"),
    (["run", *["--dataset", "digits", "--paradigm", "ul", "--logger", "tensorbord"]], 2, "'tensorboard'"),
    (["run", *["--dataset", "digits", "--paradigm", "ul", "--select-by", "neighbors"]], 2, "'neighbours'"),
    (["run", *["--dataset", "digits", "--paradigm", "ul", "--select-by", "val"]], 2, "(ssl)"),
    (["compare", *["--dataset", "digits", "--paradigm", "ul", "--select-by", "neighbors"]], 2, "'neighbours'"),
    (["run", *["--dataset", "digits", "--paradigm", "ssl", "--shots", "two"]], 2, "--shots: must be a whole number"),
    (["run", "/nowhere/study.yaml"], 2, "must be readable"),
    (["run", *["--dataset", "digits", "--paradigm", "ul", "--stress", "--no-stress"]], 2, "--stress and --no-stress"),
]


@pytest.fixture(scope="module")
def usage() -> list[Answer]:
    return answers([arguments for arguments, _, _ in USAGE])


@pytest.mark.parametrize("place", range(len(USAGE)), ids=lambda place: " ".join(USAGE[place][0]))
def test_help_and_wrong_usage_need_no_pytorch(usage: list[Answer], place: int) -> None:
    (_, code, said), (found, output, heavy, megabytes) = USAGE[place], usage[place]
    assert (found, heavy) == (code, set()), output
    assert said in output
    assert megabytes < 150


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recorded studies; a report is written into one of them."""
    return Path(shutil.copytree(RECORDED, tmp_path_factory.mktemp("recorded") / "studies"))


@pytest.fixture(scope="module")
def on_recorded(recorded: Path) -> dict[str, Answer]:
    """What commands answer about recorded studies."""
    commands = {f"status {name}": ["status", str(recorded / name)] for name in ("digits-ul-cap", "digits-trzsl-cap")}
    return dict(zip(commands, answers(list(commands.values())), strict=True))


@pytest.mark.parametrize("name", ["digits-ul-cap", "digits-trzsl-cap"])
def test_the_status_of_a_study_on_disk_is_read_from_its_record_alone(on_recorded: dict[str, Answer], name: str) -> None:
    found, output, heavy, megabytes = on_recorded[f"status {name}"]
    assert (found, heavy & {"torch", "ray", "optuna", "pandas", "scipy.stats"}) == (0, set()), output
    assert f"{name}: finished" in output
    assert megabytes < 150


@pytest.mark.slow
def test_a_report_needs_neither_pytorch_nor_ray_and_optuna_only_for_importances(recorded: Path) -> None:
    ((found, output, heavy, _),) = answers([["report", str(recorded / "digits-ul-cap")]])
    assert (found, heavy & {"torch", "ray", "optuna"}) == (0, set()), output
    assert (recorded / "digits-ul-cap" / "report.html").exists()


def test_help_shows_flags_without_a_type(usage: list[Answer]) -> None:
    _, output, _, _ = usage[0]
    assert "<bool>" not in output and "--stress" in output and "--no-dashboard" in output


def test_help_shows_one_form_of_what_is_off_and_says_once_that_there_is_another(usage: list[Answer]) -> None:
    _, output, _, _ = usage[0]
    assert "--no-stress" not in output and output.count("Each flag that is a setting has an opposite") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_help_speaks_of_a_study_file_and_of_opposites_only_where_they_are(name: str) -> None:
    function = command(name)
    said, parameters = opposites_sentence(function) or "", inspect.signature(function).parameters
    assert ("study.yaml" in said) == (name == "run")
    shown = {option for option in parameters if f"--no-{option.replace('_', '-')} " in said}
    assert len(shown) == any(option.startswith("no_") for option in parameters)
    assert all(f"no_{option}" in parameters and option in fields(*CLASSES) for option in shown)


def test_every_flag_that_is_off_can_be_turned_off_where_a_file_says_true(tmp_path: Path) -> None:
    off = {name: cls for cls in CLASSES for name, info in fields(cls).items() if info.get_default() is False}
    assert off.keys() >= {"stress", "deterministic", "stop_when_settled", "allow_duplicates", "inference_adapters"}
    seen: list[Given] = []
    command = with_options("task", "study", "trial", "machine")(_keeping(seen))
    parameters = inspect.signature(command).parameters
    for name, cls in off.items():
        group = {TaskConfig: "task", StudyConfig: "study", TrialConfig: "trial", MachineConfig: "machine"}[cls]
        typed = dict.fromkeys(parameters) | {f"no_{name}": True}
        command(**typed)
        assert getattr(seen[-1], group) == {name: False}, name
    path = header(tmp_path, stress=True, fixed={"inference_adapters": True}, task=DIGITS | {"allow_duplicates": True})
    given = Given(task={"allow_duplicates": False}, study={"stress": False}, trial={"inference_adapters": False})
    [study] = _studies(StudyFile.read(path), given, settings(given.trial, None))
    assert (study.stress, study.task.allow_duplicates, study.fixed) == (False, False, {"inference_adapters": False})


def test_none_undoes_what_a_file_says_for_every_option_that_needs_no_value(tmp_path: Path) -> None:
    optional = {name: cls for cls in CLASSES for name, info in fields(cls).items() if info.get_default() is None}
    assert optional.keys() >= {"storage", "shots", "time_budget", "gpu_hours", "space", "data_root", "micro_batch"}
    seen: list[Given] = []
    command = with_options("task", "study", "trial", "machine")(_keeping(seen))
    parameters = inspect.signature(command).parameters
    for name, cls in optional.items():
        group = {TaskConfig: "task", StudyConfig: "study", TrialConfig: "trial", MachineConfig: "machine"}[cls]
        command(**(dict.fromkeys(parameters) | {name: "none"}))
        assert getattr(seen[-1], group) == {name: None}, name
    command(**(dict.fromkeys(parameters) | {"storage": "none", "shots": "none", "data_root": "none"}))
    recorded = DIGITS | {"paradigm": "ssl", "shots": 3, "data_root": "/data"}
    path = header(tmp_path, storage="sqlite:////data/copy.db", task=recorded)
    [study] = _studies(StudyFile.read(path), seen[-1], {})
    assert (study.storage, study.task.shots, study.task.data_root) == (None, None, None)
    [study] = _studies(StudyFile.read(path), Given(), {})
    assert (study.storage, study.task.shots) == ("sqlite:////data/copy.db", 3)


def test_options_that_take_none_still_refuse_what_is_no_number_and_help_says_what_they_want(
    usage: list[Answer],
) -> None:
    with pytest.raises(ConfigError, match="--shots: must be a whole number, got 'two'"):
        TaskConfig.parse({**DIGITS, "shots": "two"}, where="the command line")
    with pytest.raises(ConfigError, match="--gpu-hours: must be a number, got 'many'"):
        MachineConfig.parse({"gpu_hours": "many"}, where="the command line")
    assert TaskConfig.parse({**DIGITS, "shots": "2"}).shots == 2
    assert MachineConfig.parse({"cpus_per_trial": "0.5"}).cpus_per_trial == 0.5
    _, output, _, _ = usage[0]
    said = " ".join(output.replace("│", " ").split())
    assert "--shots N" in said and "--gpu-hours X" in said and "--data-root PATH" in said
    assert "The value none does so for an option that needs no value: --shots none." in said


def _keeping(seen: list[Given]) -> Any:
    def command(given: Given) -> None:
        seen.append(given)

    return command


def header(tmp_path: Path, **study: Any) -> Path:
    """The head of what a study writes to study.yaml."""
    file = tmp_path / "study.yaml"
    config = StudyConfig.parse({"task": DIGITS} | study)
    space = {
        "learning_rate": {"type": "float", "role": "scientific", "low": 0.1, "high": 0.2, "log": True, "step": None}
    }
    file.write_text(yaml.safe_dump({"schema": 1, "study": config.model_dump(mode="json"), "space": space}))
    return file


def test_a_study_gives_back_what_it_was(tmp_path: Path) -> None:
    path = header(tmp_path, trials=7, seed=3, stress=True, fixed={"epochs": 4, "margin_scale": 3.0})
    file = StudyFile.read(path)
    [study] = _studies(file, Given(), {})
    assert study == StudyConfig.parse(yaml.safe_load(path.read_text())["study"])
    assert file.same_space(study) and file.space.keys() == {"learning_rate"}
    assert StudyFile.read(path.parent) == file


def test_the_command_line_takes_precedence_over_the_file(tmp_path: Path) -> None:
    file = StudyFile.read(header(tmp_path, trials=7, seed=3, stress=True, fixed={"epochs": 4, "margin_scale": 3.0}))
    given = Given(task={"shots": 3, "paradigm": "ssl"}, study={"trials": 9, "stress": False})
    [study] = _studies(file, given, {"epochs": 6})
    assert (study.trials, study.seed, study.stress) == (9, 3, False)
    assert (study.task.paradigm, study.task.shots) == ("ssl", 3)
    assert study.fixed == {"epochs": 6, "margin_scale": 3.0}
    assert not file.same_space(study)
    [study] = _studies(file, Given(study={"trials": 9}), {})
    assert file.same_space(study)


def test_a_file_of_settings_alone_will_do(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"task": DIGITS, "trials": 2}))
    [study] = _studies(StudyFile.read(file), Given(), {})
    assert study.trials == 2 and study.task.dataset == "digits"
    file.write_text(yaml.safe_dump({"task": DIGITS, "trails": 2}))
    with pytest.raises(ConfigError, match="Did you mean 'trials'"):
        _studies(StudyFile.read(file), Given(), {})
    file.write_text("study: 3")
    with pytest.raises(ConfigError, match="must hold its settings"):
        StudyFile.read(file)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match="--dataset must be given"):
        _studies(StudyFile(), Given(), {})
    with pytest.raises(UsageError, match="--paradigm must be given"):
        _studies(StudyFile(), Given(task={"dataset": "digits"}), {})


def test_settings_are_read_as_yaml() -> None:
    assert settings({"epochs": 3}, ["margin-scale=8", "main_samples=false", "leaderboard=exclusive"]) == {
        "epochs": 3,
        "margin_scale": 8,
        "main_samples": False,
        "leaderboard": "exclusive",
    }
    with pytest.raises(UsageError, match="must be given once"):
        settings({"epochs": 3}, ["epochs=4"])
    with pytest.raises(UsageError, match="--set must be SETTING=VALUE"):
        settings({}, ["margin_scale"])
