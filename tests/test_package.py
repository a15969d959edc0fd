"""What the package says of itself is true in every place that says it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

import captune

ROOT = Path(__file__).parent.parent


def test_the_version_stands_once_and_the_citation_repeats_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == captune.__version__


def test_the_licence_named_is_the_licence_shipped() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    text = (ROOT / "LICENSE").read_text()
    assert project["license"] == citation["license"] == "Apache-2.0"
    assert "Apache License" in text and "Version 2.0" in text
    assert "Apache License 2.0" in (ROOT / "captune/model/assets/tiny/README.md").read_text()
