"""Class descriptions: sentences on what a class looks like, for classes whose name alone does not find their images.

Where detection flags a class as mismatched, concept alignment chooses its main samples by a description instead of by
its name. Our descriptions are in `descriptions/`, one YAML file per dataset; a user's own file has the same grammar,
which `descriptions/README.md` explains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from captune.errors import ConfigError, did_you_mean
from captune.plain_yaml import parse_yaml

DESCRIPTIONS_DIR: Final = Path(__file__).parent / "descriptions"
"""The folder of our own descriptions: `<dataset key>.yaml`."""


def described_datasets() -> list[str]:
    """The dataset keys that have descriptions of ours, sorted."""
    return sorted(path.stem for path in DESCRIPTIONS_DIR.glob("*.yaml"))


def load_descriptions(dataset_or_path: str | Path) -> dict[str, list[str]]:
    """Read and check the descriptions of a dataset, or of a user's own file.

    Args:
        dataset_or_path: a dataset key ("eurosat"), or a file: any `Path`, and any text that ends in .yaml or .yml.

    Returns:
        Class name as written in the file → its sentences, in the file's order. Empty for a dataset without
        descriptions of ours: the caller reports its classes as left alone.

    Raises:
        ConfigError: the file is missing or is not YAML; a class appears twice, has no sentence, or one that is empty,
            or repeated. All errors of a file are reported at once, each with its key. Whether a sentence fits the text
            tower is checked later (`captune.algorithms.concept_alignment.class_descriptions`).
    """
    if isinstance(dataset_or_path, Path) or dataset_or_path.endswith((".yaml", ".yml")):
        path = Path(dataset_or_path)
    else:
        if dataset_or_path not in described_datasets():
            return {}
        path = DESCRIPTIONS_DIR / f"{dataset_or_path}.yaml"
    loaded = _read(path)
    if not isinstance(loaded, dict) or not loaded:
        raise ConfigError(
            "a descriptions file must map each class name to a list of sentences",
            got="nothing" if not loaded else f"a {type(loaded).__name__}",
            where=path,
            next_step="Write `class name:` and under it one `- sentence` per line.",
        )
    problems: list[str] = []
    seen: dict[str, Any] = {}
    for name, sentences in loaded.items():
        problems += _problems(name, sentences)
        key = class_key(str(name))
        if key in seen:
            problems.append(f"{name}: the same class as '{seen[key]}' above")
        seen[key] = name
    if problems:
        raise ConfigError(
            "every class must have sentences, none empty and none twice",
            got="".join(f"\n  {path.name}: {problem}" for problem in problems),
            where=path,
            next_step="Put names and sentences that hold ': ' or begin with a sign into quotes.",
        )
    return {str(name): [" ".join(sentence.split()) for sentence in sentences] for name, sentences in loaded.items()}


def match_descriptions(
    descriptions: Mapping[str, Sequence[str]],
    class_names: Sequence[str],
    *,
    where: object = "descriptions",
    extra_ok: bool = False,
) -> tuple[dict[int, list[str]], list[str]]:
    """Give each class of a dataset its descriptions.

    Names match regardless of case, and whether spaces, underscores, hyphens or slashes separate their words: copies of
    a dataset differ in these. A second name of a class that matched (a YAML alias, `*anchor`) is no error.

    Args:
        descriptions: class name → sentences, from `load_descriptions`.
        class_names: K names in label order.
        where: the file or option the descriptions came from, for the message.
        extra_ok: let descriptions of classes the dataset does not have pass, for a subset of a described dataset.

    Returns:
        described: label 0..K-1 → its sentences; missing: the names, in label order, of the classes without any. The
        caller reports those and leaves them alone.

    Raises:
        ConfigError: a description is of no class of the dataset; the nearest class name is given for each.
    """
    by_key = {class_key(name): list(sentences) for name, sentences in descriptions.items()}
    described: dict[int, list[str]] = {}
    missing: list[str] = []
    for label, name in enumerate(class_names):
        sentences = by_key.get(class_key(name))
        if sentences:
            described[label] = sentences
        else:
            missing.append(name)
    if not extra_ok:
        known_keys = {class_key(name) for name in class_names}
        matched = {tuple(sentences) for sentences in described.values()}
        unknown = [
            name
            for name, sentences in descriptions.items()
            if class_key(name) not in known_keys and tuple(sentences) not in matched
        ]
        if unknown:
            # An unknown name is most likely a misspelling of a class that has no description yet.
            candidates = missing or list(class_names)
            raise ConfigError(
                "every described class must be a class of the dataset",
                got="".join(f"\n  '{name}': {did_you_mean(name, candidates)}" for name in unknown),
                where=where,
            )
    return described, missing


def class_key(name: str) -> str:
    """What spellings of one class name share: case folded, signs between words one space ("F-16A/B" → "f 16a b")."""
    return re.sub(r"[\W_]+", " ", name).strip().casefold() or name.casefold()


def _problems(name: object, sentences: object) -> list[str]:
    """What is wrong with one class of a file, as `key: problem` lines."""
    if not isinstance(name, str):
        return [f"{name}: a class name must be text, but YAML reads a {type(name).__name__}: put it into quotes"]
    if not isinstance(sentences, list):
        return [f"{name}: must be a list of sentences, but is a {type(sentences).__name__}"]
    if not sentences:
        return [f"{name}: has no sentence"]
    problems = []
    for number, sentence in enumerate(sentences, start=1):
        if not isinstance(sentence, str) or not sentence.strip():
            kind = "empty" if sentence is None or isinstance(sentence, str) else f"a {type(sentence).__name__}"
            problems.append(f"{name}: sentence {number} must be text, but is {kind}")
        elif sentence in sentences[: number - 1]:
            problems.append(f"{name}: sentence {number} repeats another of this class")
    return problems


def _read(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            "a descriptions file must exist",
            where=path,
            next_step="Describe your classes as descriptions/README.md in captune/model shows.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("a descriptions file must be readable UTF-8 text", got=error, where=path) from None
    return parse_yaml(text, where=path, what="a descriptions file", words=True)
