"""The user's own class names and template: a list on the command line, a text file, or YAML."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from captune.config import TaskConfig
from captune.data.dataset import Dataset
from captune.data.tree import name_some, printable
from captune.errors import ConfigError, DataError, UsageError, did_you_mean
from captune.plain_yaml import parse_yaml

NO_LABELS = "If these are no classes, name the classes by --class-names and add --labels none."
_YAML = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class GivenNames:
    """What `--class-names` says.

    Attributes:
        names: all class names in label order, or None.
        renamed: old class name → new one, or None.
        template: a prompt template, or None.
        where: the file or option, for messages.
    """

    names: tuple[str, ...] | None
    renamed: dict[str, Any] | None
    template: str | None
    where: str

    def of(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """New names of a dataset's classes, in its label order.

        A list of the dataset's own names, in another order or spelling, is matched by name and not by position.

        Raises:
            ConfigError: another number of names, an old name that is not there, names that are empty or equal.
        """
        if self.renamed is not None:
            _refuse_unknown(self.renamed, names, self.where)
            return checked_names([self.renamed.get(name, name) for name in names], self.where)
        if self.names is None:
            return names
        if len(self.names) != len(names):
            raise ConfigError(
                f"class_names must be {len(names)} names in label order",
                got=f"{len(self.names)} names",
                where=self.where,
                next_step="If the dataset's classes are not those to tell apart, add --labels none.",
            )
        spelled = {spelling(name): name for name in self.names}
        if spelled.keys() == {spelling(name) for name in names}:
            return tuple(spelled[spelling(name)] for name in names)
        moved = [name for name, new in zip(names, self.names, strict=True) if spelling(name) in spelled]
        moved = [name for name in moved if spelling(self.names[names.index(name)]) != spelling(name)]
        if moved:
            raise ConfigError(
                "class_names must stand in the dataset's label order",
                got=f"{name_some(moved)} at another place than in the dataset",
                where=self.where,
                next_step=f"The dataset's order: {', '.join(names)}.",
            )
        return self.names


def _refuse_unknown(renamed: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    unknown = [old for old in renamed if old not in names]
    if unknown:
        raise ConfigError(
            "class_names must rename classes of the dataset",
            got=f"'{unknown[0]}'",
            where=where,
            next_step=did_you_mean(unknown[0], names),
        )


def apply_overrides(dataset: Dataset, task: TaskConfig, given: GivenNames | None) -> Dataset:
    """The dataset with the names and the template of `--class-names`; `--template` wins over the file's.

    Raises:
        ConfigError: names that do not fit the dataset's classes.
        UsageError: a template without exactly one `{}`.
    """
    names, template = dataset.class_names, dataset.template
    if given is not None:
        names, template = given.of(names), given.template or template
    if task.template is not None:
        template = checked_template(task.template, "--template")
    return replace(dataset, class_names=names, template=template)


class NamesMissing(DataError):
    """Raised for images without labels if no class names were given."""


def names_missing(got: str, where: Path | str, otherwise: str = "") -> NamesMissing:
    """The error for images without labels and without names; `otherwise` suggests another way out."""
    return NamesMissing(
        "images without labels must come with the names of the classes",
        got=got,
        where=where,
        next_step=f'Add --class-names "ring,bar,cup", or a file with one name per line.{otherwise}',
    )


def spelling(name: str) -> str:
    """A name without the differences between two spellings of one class.

    These are case, outer blanks, `_` for a space, and whether an accented letter is one character or two (Unicode's NFC
    and NFD; macOS writes file names in NFD).
    """
    return unicodedata.normalize("NFC", " ".join(name.replace("_", " ").split()).casefold())


def renaming(classes: Sequence[str], given: GivenNames | None) -> tuple[str, ...]:
    """A note if classes of a folder or a list are renamed by position and none of them has any of the new names."""
    if given is None or given.names is None or {*map(spelling, classes)} & {*map(spelling, given.names)}:
        return ()
    pairs = [f"{old} = {name}" for old, name in zip(classes, given.names, strict=False)]
    return (f"what is there is read as the classes, in this order: {name_some(pairs, 5)}. {NO_LABELS}",)


def spelled_alike(names: Iterable[str]) -> list[str]:
    """Names that differ only in spelling, one text per class; names that look the same are shown as escape codes."""
    by_spelling: dict[str, list[str]] = {}
    for name in names:
        by_spelling.setdefault(spelling(name), []).append(name)
    groups = (group for group in by_spelling.values() if len(group) > 1)
    return [" and ".join(_told_apart(sorted(group))) for group in groups]


def _told_apart(names: list[str]) -> list[str]:
    shown = {unicodedata.normalize("NFC", name) for name in names}
    return [ascii(name) if len(shown) < len(set(names)) else f"'{name}'" for name in names]


def read_class_names(given: str | None) -> GivenNames | None:
    """What `--class-names` says; None without it.

    Args:
        given: names separated by commas, or a file: YAML (.yaml, .yml, .json) that holds a list, or a mapping with
            `class_names` (a list, or old name → new name) and `template`; any other file: one name per line.

    Raises:
        ConfigError: not such a file, names that are not text, empty or equal.
        UsageError: a template without exactly one `{}`.
    """
    if given is None:
        return None
    if "," in given and not os.path.isabs(given):  # noqa: PTH117 - names are no path
        return GivenNames(checked_names(given.split(","), "--class-names"), None, None, "--class-names")
    file = Path(given)
    text = _text(file)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    is_yaml = file.suffix.lower() in _YAML or (bool(lines) and all(line.startswith("- ") for line in lines))
    if not is_yaml:
        return GivenNames(checked_names(lines, str(file)), None, None, str(file))
    values = _yaml(text, file)
    template = None
    if isinstance(values, dict):
        if "template" in values:
            template = checked_template(values["template"], f"{file}: template")
        values = values.get("class_names")
    if isinstance(values, dict):
        return GivenNames(None, {str(old): new for old, new in values.items()}, template, str(file))
    if values is not None and not isinstance(values, list):
        raise ConfigError("class_names must be a list or a mapping", got=type(values).__name__, where=file)
    return GivenNames(None if values is None else checked_names(values, str(file)), None, template, str(file))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not file.suffix and file.parent.is_dir():  # a word, not a path
            raise _one_word(file) from None
        raise ConfigError(
            "a file of class names must be readable",
            got=error.strerror,
            where=file,
            next_step='Give names as --class-names "ring,bar,cup", or a file with one name per line.',
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError("a file of class names must be UTF-8 text", got=f"byte {error.start}", where=file) from None


def _one_word(file: Path) -> ConfigError:
    """The error for one name, or for names that are separated by something else than commas."""
    parts = [part.strip() for part in re.split(r"[;|\t\n]", file.name) if part.strip()]
    name = printable(file.name)
    return ConfigError(
        "class names must be at least two, parted by commas, or a file that is there",
        got=f"'{name}': no comma, and no file of that name in {printable(file.parent)}",
        where="--class-names",
        next_step=f'Part them by commas: "{printable(",".join(parts))}".'
        if len(parts) > 1
        else f'Name what else the images may show, as "{name},other", or a file with one name per line.',
    )


def _yaml(text: str, file: Path) -> Any:
    values = parse_yaml(text, where=file, what="a file of class names", words=True)
    if not isinstance(values, (list, dict)):
        raise ConfigError(
            "a file of class names must hold a list, or a mapping with class_names and template",
            got=type(values).__name__,
            where=file,
        )
    known = ["class_names", "template"]
    unknown = sorted(str(key) for key in values if key not in known) if isinstance(values, dict) else []
    if unknown:
        raise ConfigError(
            "a file of class names must hold class_names and template only",
            got=f"'{unknown[0]}'",
            where=file,
            next_step=did_you_mean(unknown[0], known),
        )
    return values


def checked_names(given: list[Any], where: str) -> tuple[str, ...]:
    """Names as text, without outer blanks.

    Raises:
        ConfigError: no names, names that are not text, empty or equal.
    """
    # YAML reads `no`, `1` and the like as booleans and numbers.
    odd = [str(name) for name in given if not isinstance(name, (str, int)) or isinstance(name, bool)]
    if odd:
        raise ConfigError("class names must be text", got=f"{odd[0]}", where=where, next_step="Put it in quotes.")
    result = tuple(str(name).strip() for name in given)
    twice = sorted(name for name, count in Counter(result).items() if count > 1)
    if not result or "" in result or twice:
        raise ConfigError(
            "class names must be different and not empty",
            got="an empty name" if "" in result else name_some(twice) if twice else "none",
            where=where,
        )
    return result


def checked_template(template: Any, where: str) -> str:
    """The template as text.

    Raises:
        UsageError: it does not hold exactly one `{}`.
    """
    text = str(template)
    if text.count("{}") != 1 or text.replace("{}", "").count("{") or text.replace("{}", "").count("}"):
        raise UsageError("a template must hold exactly one {}", got=f"'{text}'", where=where)
    return text
