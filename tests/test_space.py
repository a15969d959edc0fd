"""The grammar of search spaces: what it resolves to and what it says about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captune.algorithms import ALGORITHMS, default_config
from captune.config import TaskConfig, TrialConfig
from captune.errors import ConfigError, UsageError
from captune.space import Parameter, Space, load_space, shipped_space, space_file
from captune.tuning.header import space_from
from tests.slow import in_one_test

BASE = TrialConfig.parse({"epochs": 10})


def load(tmp_path: Path, text: str, **options: object) -> Space:
    path = tmp_path / "space.yaml"
    path.write_text(f"parameters:\n{text}")
    return load_space(path, BASE, **options)  # type: ignore[arg-type]


def problems(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return str(caught.value)


def test_a_budget_is_a_multiple_of_the_configurations_own(tmp_path: Path) -> None:
    (epochs,) = load(tmp_path, "  epochs: {type: int, unit: budget, low: 0.25, high: 1.5}").parameters
    assert (epochs.low, epochs.high) == (2, 15)  # 0.25 · 10 = 2.5, down; 1.5 · 10


def test_a_budget_is_at_least_one_epoch(tmp_path: Path) -> None:
    (epochs,) = load(tmp_path, "  epochs: {type: int, unit: budget, low: 0.01, high: 0.02}").parameters
    assert (epochs.low, epochs.high) == (1, 1)


@pytest.mark.parametrize(("class_size", "high"), [(None, 32), (100, 32), (20, 20), (1, 2)])
def test_a_parameter_is_cut_at_the_class_size_but_not_below_its_low(
    tmp_path: Path, class_size: int | None, high: int
) -> None:
    text = "  batch_size: {type: int, low: 2, high: 32, max: class_size}"
    assert load(tmp_path, text, class_size=class_size).parameters[0].high == high


def test_fixed_parameters_and_those_of_the_command_line_are_not_searched(tmp_path: Path) -> None:
    text = """
  momentum: {role: fixed, value: 0.5}
  learning_rate: {type: float, low: 0.001, high: 0.1, log: true}
  weight_decay: {type: float, low: 0.0, high: 0.1}
"""
    space = load(tmp_path, text, fixed={"weight_decay": 0.0})
    assert [parameter.name for parameter in space.parameters] == ["learning_rate"]
    assert space.fixed == {"momentum": 0.5}


@in_one_test(
    ("text", "said"),
    [
        ("  learning_rate: {type: float, low: 0.1, high: 0.01}", "low <= high must hold, but got (low=0.1, high=0.01)"),
        ("  learnig_rate: {type: float, low: 0.1, high: 1}", "Did you mean 'learning_rate'?"),
        ("  learning_rate: {type: float, lo: 0.1, high: 1}", "unknown key 'lo': Did you mean 'low'?"),
        ("  learning_rate: {type: flaot, low: 0.1, high: 1}", "type must be one of float, int, categorical, but got"),
        ("  learning_rate: {type: float, low: 0.0, high: 1, log: true}", "low > 0 must hold on a log scale, but got 0"),
        ("  learning_rate: {type: float, low: -1.0, high: 1}", "learning_rate: must be more than 0, got -1.0"),
        ("  epochs: {type: int, low: 1.5, high: 3}", "low must be a whole number, but got 1.5"),
        ("  epochs: {type: int, high: 3}", "low must be a number, but got None"),
        ("  epochs: {type: int, low: 1, high: .inf}", "high must be a number, but got inf"),
        ("  epochs: {type: int, low: 1, high: 3, unit: budgte}", "unit must be 'budget'"),
        ("  epochs: {type: int, low: 1, high: 3, max: 4}", "max must be 'class_size'"),
        ("  epochs: {type: int, low: 1, high: 3, role: scientist}", "role must be one of scientific, nuisance, fixed"),
        ("  epochs: {role: fixed}", "a fixed parameter must have a `value`"),
        ("  epochs: {role: fixed, value: 0}", "epochs: must be at least 1, got 0"),
        ("  prompts: {type: categorical, choices: []}", "choices must be a list of at least one value"),
        ("  prompts: {type: categorical, choices: [text, vision]}", "prompts: Input should be 'text', 'image'"),
        ("  epochs: 3", "epochs: must be `{type: …}`, but got 3"),
        ("  epochs: {type: int, low: 1, high: 9, step: 0}", "step must be a number above 0"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, said: str) -> None:
    message = problems(tmp_path, text)
    assert said in message
    assert "space.yaml" in message


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = "  epochs: {type: int, low: 9, high: 1}\n  nothing: {type: int, low: 1, high: 2}\n  momentum: {type: x}"
    message = problems(tmp_path, text)
    assert all(part in message for part in ("low <= high", "'nothing' is no field", "momentum: type must"))


def test_an_unknown_key_of_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("paramters: {}\n")
    with pytest.raises(ConfigError, match="unknown key 'paramters': Did you mean 'parameters'"):
        load_space(path, BASE)


def test_a_method_without_a_shipped_space_asks_for_one() -> None:
    with pytest.raises(UsageError, match="a search space for 'nothing' must be given"):
        space_file(None, "nothing")


def contains(parameter: Parameter, value: object) -> bool:
    """Whether a value lies in a parameter's domain (steps aside)."""
    if parameter.kind == "categorical":
        return value in parameter.choices
    return isinstance(value, (int, float)) and parameter.low <= value <= parameter.high


@in_one_test("method", [name for name in ALGORITHMS if shipped_space(name) is not None])
@in_one_test("paradigm", ["ul", "trzsl"])
def test_every_shipped_space_is_valid_and_holds_the_methods_own_configuration(method: str, paradigm: str) -> None:
    base = default_config(method, TaskConfig.parse({"dataset": "digits", "paradigm": paradigm}))
    space = load_space(space_file(None, method), base, class_size=40)
    # Without a value of its own a setting is estimated from the data: a search only looks among given ones.
    given = [p for p in space.parameters if getattr(base, p.name) is not None]
    outside = [p.name for p in given if not contains(p, getattr(base, p.name))]
    assert outside == []


def test_the_default_space_spreads_what_the_study_is_about() -> None:
    base = default_config("cap", TaskConfig.parse({"dataset": "digits", "paradigm": "ul"}))
    searched = {p.name: p for p in load_space(space_file(None, "cap"), base, class_size=86).parameters}
    assert {
        "margin_scale", "alignment_temperature", "alignment_weight", "reweighting_strength", "confidence_threshold",
        "learning_rate", "weight_decay", "adapter_residual", "epochs", "num_main_samples",
    } <= searched.keys()  # fmt: skip
    assert searched["learning_rate"].log and searched["weight_decay"].log and searched["adapter_residual"].log


numbers = st.floats(-1e6, 1e6, allow_nan=False)


@settings(max_examples=50, deadline=None)
@given(
    low=st.floats(0.001, 10), width=st.floats(0, 100), log=st.booleans(), kind=st.sampled_from(["float", "int"]),
    value=numbers, step=st.sampled_from([None, 1.0, 2.0]),
)  # fmt: skip
def test_clipping_lands_in_the_domain_and_twice_is_once(
    low: float, width: float, log: bool, kind: str, value: float, step: float | None
) -> None:
    if kind == "int":
        low, width = float(int(low) + 1), float(int(width))
    parameter = Parameter("x", kind, "nuisance", low, low + width, log, None if log else step)  # type: ignore[arg-type]
    clipped = parameter.clip(value)
    assert contains(parameter, clipped)
    assert parameter.clip(clipped) == pytest.approx(clipped)
    assert 0 <= parameter.unit(clipped) <= 1


def test_the_log_scale_places_the_geometric_middle_in_the_middle() -> None:
    assert Parameter("x", "float", "nuisance", 0.001, 0.1, True).unit(0.01) == pytest.approx(0.5)


def test_a_space_survives_its_description(tmp_path: Path) -> None:
    text = """
  learning_rate: {type: float, low: 0.001, high: 0.1, log: true, role: nuisance}
  epochs: {type: int, unit: budget, low: 0.5, high: 1.5}
  prompts: {type: categorical, choices: [text, image]}
  momentum: {role: fixed, value: 0.5}
"""
    space = load(tmp_path, text)
    again = space_from(space.describe(), space.source)
    assert again.parameters == space.parameters and again.fixed == space.fixed


CONDITIONAL = """
  prompts: {type: categorical, choices: [text, multimodal]}
  num_context: {type: int, low: 1, high: 4, when: {prompts: text}}
  weight_decay: {type: float, low: 0.0, high: 0.1}
  momentum: {type: float, low: 0.1, high: 0.9, when: {weight_decay: {above: 0.05}}}
"""


def test_a_parameter_is_part_of_a_configuration_where_its_condition_holds(tmp_path: Path) -> None:
    space = load(tmp_path, CONDITIONAL)
    values = {"prompts": "text", "num_context": 2, "weight_decay": 0.05, "momentum": 0.5}
    assert space.active(values) == {"prompts": "text", "num_context": 2, "weight_decay": 0.05}
    other = values | {"prompts": "multimodal", "weight_decay": 0.06}
    assert space.active(other) == {"prompts": "multimodal", "weight_decay": 0.06, "momentum": 0.5}
    assert space.unit(space.active(values))[3] == 0.5
    assert space_from(space.describe(), "recorded").parameters == space.parameters


def test_a_condition_on_what_is_fixed_holds_or_not_once_and_for_all(tmp_path: Path) -> None:
    names = [p.name for p in load(tmp_path, CONDITIONAL, fixed={"prompts": "text", "weight_decay": 0.0}).parameters]
    assert names == ["num_context"]
    assert load(tmp_path, CONDITIONAL, fixed={"prompts": "text"}).parameters[0].when == ()


def test_points_that_differ_only_in_what_has_no_part_are_one(tmp_path: Path) -> None:
    text = """
  prompts: {type: categorical, choices: [text, multimodal]}
  num_context: {type: int, low: 1, high: 2, when: {prompts: text}}
"""
    assert load(tmp_path, text).points(10) == [
        {"prompts": "text", "num_context": 1}, {"prompts": "text", "num_context": 2}, {"prompts": "multimodal"},
    ]  # fmt: skip


def test_mistakes_in_conditions_are_named(tmp_path: Path) -> None:
    said = problems(tmp_path, "  momentum: {type: float, low: 0.1, high: 0.9, when: {weight_decy: 1}}")
    assert "when: 'weight_decy' must stand before it" in said
    said = problems(tmp_path, "  momentum: {type: float, low: 0.1, high: 0.9, when: {weight_decay: {over: 1}}}")
    assert "must be a value, a list of values or {above: NUMBER}" in said
    assert "when must be" in problems(tmp_path, "  momentum: {type: float, low: 0.1, high: 0.9, when: [a]}")
