"""Configuration: unknown keys, ranges, aliases, YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from captune.algorithms.configs import CapConfig
from captune.config import PARADIGMS, StudyConfig, TaskConfig, TrialConfig, read_yaml
from captune.errors import ConfigError


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown option 'margn_scale': Did you mean 'margin_scale'"):
        CapConfig.parse({"margn_scale": 3}, where="space.yaml")


def test_an_unknown_option_of_a_nested_model_is_named_with_its_path() -> None:
    with pytest.raises(ConfigError, match=r"unknown option 'task.datset': Did you mean 'dataset'"):
        StudyConfig.parse({"task": {"datset": "digits", "dataset": "digits", "paradigm": "ul"}})


def test_all_errors_of_a_file_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        CapConfig.parse({"learning_rate": -1, "momentum": 2, "nonsense": 0}, where="some.yaml")
    text = str(caught.value)
    assert all(name in text for name in ("learning_rate", "momentum", "nonsense", "some.yaml"))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_a_number_is_no_setting(value: float) -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        TrialConfig.parse({"learning_rate": value})


def test_the_warm_up_ends_before_the_training() -> None:
    with pytest.raises(ConfigError, match=r"warmup_epochs <= epochs must hold, but got \(warmup_epochs=3, epochs=2\)"):
        CapConfig.parse({"epochs": 2, "warmup_epochs": 3})
    assert CapConfig.parse({"epochs": 2, "warmup_epochs": 2}).epochs == 2


def test_transductive_means_tft() -> None:
    assert TaskConfig.parse({"dataset": "digits", "paradigm": "transductive"}).paradigm == "tft"
    assert set(PARADIGMS) == {"ul", "ssl", "trzsl", "tft"}


def test_the_paper_has_two_shots_in_ssl_and_none_in_tft() -> None:
    shots = {paradigm: TaskConfig.parse({"dataset": "d", "paradigm": paradigm}).num_shots for paradigm in PARADIGMS}
    assert shots == {"ul": 0, "ssl": 2, "trzsl": 0, "tft": 0}


def test_a_configuration_survives_yaml() -> None:
    config = CapConfig.parse({"margin_scale": 4.0, "tuning": "features"})
    assert CapConfig.parse(yaml.safe_load(config.to_yaml())) == config


def test_paths_become_absolute_so_that_workers_elsewhere_find_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    task = TaskConfig.parse({"dataset": "digits", "paradigm": "ul", "data_root": "data"})
    assert task.data_root == tmp_path / "data"


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1, 2]", "key: value"), ("a: [", "valid YAML"), ("!!python/object/apply:os.getcwd []", "valid YAML")],
)
def test_files_that_are_no_configuration_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_yaml(path)
