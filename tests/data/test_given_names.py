"""What `--class-names` takes for names and what for a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from captune.data.overrides import read_class_names
from captune.errors import ConfigError


def test_one_word_is_no_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"at least two, parted by commas, or a file.*'ring'(.|\n)*ring,other"):
        read_class_names("ring")


def test_a_file_with_a_comma_in_its_name_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ring,bar").write_text("cup\nplate\n")
    given = read_class_names("ring,bar")
    assert given is not None and given.names == ("cup", "plate")
    many = ",".join(f"class {number}" for number in range(5000))
    given = read_class_names(many)
    assert given is not None and given.names is not None and len(given.names) == 5000
