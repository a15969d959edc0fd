"""Lists of very many rows cost what their images cost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from captune.data.manifests import read_manifest
from captune.data.overrides import read_class_names
from captune.errors import DataError
from tests.data.miniatures import write_image


def test_a_list_costs_a_look_per_image_and_per_folder_not_per_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "a" / "b" / "c"
    for number in range(40):
        write_image(deep / f"{number}.png", number)
    looks = {}
    for rows in ("once", "again"):
        text = "path,label\n" + "".join(f"a/b/c/{number}.png,\n" for number in range(40)) * (
            1 if rows == "once" else 50
        )
        file = tmp_path / f"{rows}.csv"
        file.write_text(text)
        with monkeypatch.context() as patched:
            counted = _count_looks(patched)
            listing = read_manifest(file, read_class_names("ring,bar"))
            looks[rows] = len(counted)
        assert len(listing.splits["train"]) == 40
    assert looks["again"] == looks["once"], "a row that names an image again is not looked up again"
    folders = len(deep.parts) * 2
    assert looks["once"] <= 40 + 3 * folders, "an image costs one look, its folder is resolved once"
    assert listing.notes == ("1960 of 2000 rows name an image that an earlier row names: read once",)


def _count_looks(patched: pytest.MonkeyPatch) -> list[object]:
    """Every path whose status is asked for."""
    counted: list[object] = []

    def counting(look: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def counted_look(path: object, *arguments: object, **options: object) -> os.stat_result:
            counted.append(path)
            return look(path, *arguments, **options)

        return counted_look

    for name in ("stat", "lstat"):
        patched.setattr(os, name, counting(getattr(os, name)))
    return counted


def test_one_missing_image_of_many_rows_is_named_once(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    file = tmp_path / "m.csv"
    file.write_text("path,label\n" + "a.png,x\ngone.png,x\n" * 300)
    with pytest.raises(DataError, match=r"on disk, but got 1 missing: gone\.png \("):
        read_manifest(file)
