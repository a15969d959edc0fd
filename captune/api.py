"""The Python API: what `import captune` offers. Nothing here prints; PyTorch and Ray are imported when first used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune.config import Config, TaskConfig
from captune.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from captune.adapted import AdaptedModel

__all__ = ["adapt", "datasets", "load"]


def load(
    path: str | Path, *, backbone: str | None = None, pretrained: str | None = None, device: str = "auto"
) -> AdaptedModel:
    """Open an adapted model: what `adapt`, `captune adapt` or `captune export` wrote.

    Args:
        path: the folder, or the file in it.
        backbone: open_clip model name, where the recorded one is called otherwise here.
        pretrained: weights, where the recorded ones lie elsewhere now.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        CheckpointError: no checkpoint, or one of another backbone.

    Example:
        >>> import captune
        >>> _ = captune.adapt(dataset="digits", method="balanced", out="adapted")
        >>> model = captune.load("adapted")
        >>> model.class_weights.shape
        (10, 64)
        >>> import sklearn.datasets
        >>> images = (sklearn.datasets.load_digits().images[:2] * 15.9).astype("uint8")
        >>> list(model.predict(list(images)).columns)
        ['image', 'rank', 'class', 'probability']
    """
    from captune.adapted import open_adapted

    return open_adapted(Path(path).expanduser(), backbone=backbone, pretrained=pretrained, device=device)


def adapt(
    images: str | Path | None = None,
    class_names: Sequence[str] | str | Path | None = None,
    *,
    dataset: str | None = None,
    paradigm: str = "ul",
    method: str | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    out: str | Path = "adapted",
    seed: int = 0,
    device: str = "auto",
    **options: Any,
) -> AdaptedModel:
    """Adapt a model to unlabelled images with one configuration, without a search and without Ray.

    Args:
        images: a folder of images; short for `dataset="folder:DIR"`.
        class_names: names of the classes, or a file of them.
        dataset: a dataset's name, or folder:DIR, csv:FILE, features:FILE, as on the command line.
        paradigm: ul, ssl, trzsl or tft.
        method: a method's name; the configuration's, else cap.
        config: best_config.yaml of a study, any file of trial settings, or a mapping of them.
        out: the folder to write to: checkpoint, predictions, epochs, metrics. It must not hold another adaptation.
        seed: of the training.
        device: auto, cpu, cuda or cuda:N.
        options: any other option of `captune adapt` by its name, or any setting of the method: `backbone`,
            `pretrained`, `shots`, `epochs`, `margin_scale`, …

    Returns:
        The adapted model; `captune.load(out)` opens it again.

    Raises:
        UsageError: no images, an unknown option (the nearest is named), or a value out of range.
        DataError, ModelError: images or weights that cannot be used.

    Example:
        >>> import captune
        >>> model = captune.adapt(dataset="digits", method="zero_shot", out="frozen")
        >>> model.class_names[:3]
        ('zero', 'one', 'two')
    """
    from captune.adapting import adapt_once, check_out, configuration
    from captune.algorithms import method_named
    from captune.data.catalog import check_dataset_name

    if (images is None) == (dataset is None):
        raise UsageError("either images or dataset must be given", got="both" if images is not None else "neither")
    known = dataset if dataset is not None else f"folder:{Path(str(images)).expanduser()}"
    check_dataset_name(known)
    source = dict(config) if isinstance(config, Mapping) else None if config is None else Path(config).expanduser()
    named = method or (source.get("method") if isinstance(source, dict) else None) or "cap"
    cell, settings = split_options(options, TaskConfig, method_named(named).config_class)
    if class_names is not None:
        cell["class_names"] = _names(class_names)
    task = TaskConfig.parse({**cell, "dataset": known, "paradigm": paradigm}, where="adapt")
    name, trial = configuration(task, method=method, config=source, settings=settings, where="adapt")
    place = Path(out).expanduser().absolute()
    check_out(place)
    from captune.training.context import cell_notes

    adapt_once(task, name, trial, place, seed=seed, device=device, notes=list(cell_notes(task)))
    return load(place, backbone=task.backbone, pretrained=task.pretrained, device=device)


def datasets(*, data_root: str | Path | None = None, protocol: str = "coop") -> pd.DataFrame:
    """Every dataset of the catalogue, and what of it is on disk.

    Args:
        data_root: folder of the datasets; $CAPTUNE_DATA, else ~/.cache/captune/data, if None.
        protocol: coop, or paper for the split files of the CAP paper.

    Returns:
        One row per dataset: `name`, `found`, `layout`, `num_classes`, `train`, `val`, `test` (images; empty where it
        is not found), `licence`, `how_to_get`, `problem` (why what is there cannot be used).

    Example:
        >>> import captune
        >>> captune.datasets().set_index("name").loc["digits", "num_classes"]
        np.int64(10)
    """
    import pandas as pd

    from captune.data.catalog import DATASETS
    from captune.data.catalog import data_root as default_root
    from captune.data.survey import survey

    root = default_root() if data_root is None else Path(data_root).expanduser()
    rows = []
    for key, row in DATASETS.items():
        values = {"dataset": key, "paradigm": "ul", "data_root": root, "protocol": protocol}
        status = survey(TaskConfig.parse(values, where="datasets"))
        found = status.dataset
        splits = {name: None if found is None else len(getattr(found, name)) for name in ("train", "val", "test")}
        rows.append(
            {
                "name": key, "found": found is not None, "layout": found.layout if found is not None else None,
                "num_classes": row.num_classes, **splits, "licence": row.licence, "how_to_get": row.how_to_get,
                "problem": status.problem,
            }
        )  # fmt: skip
    return pd.DataFrame(rows).astype(dict.fromkeys(("train", "val", "test"), "Int64"))


def split_options(options: Mapping[str, Any], *classes: type[Config]) -> tuple[dict[str, Any], ...]:
    """Options by the configuration class that has the field; the first one where several do.

    Raises:
        UsageError: no class has it, with the nearest name.
    """
    parts: tuple[dict[str, Any], ...] = tuple({} for _ in classes)
    for name, value in options.items():
        owner = next((place for place, cls in enumerate(classes) if name in cls.model_fields), None)
        if owner is None:
            known = [field for cls in classes for field in cls.model_fields]
            raise UsageError(
                "an option must be a field of the configuration", got=f"'{name}'", next_step=did_you_mean(name, known)
            )
        parts[owner][name] = value
    return parts


def _names(names: Sequence[str] | str | Path) -> str:
    if isinstance(names, (str, Path)):
        return str(names)
    wrong = [name for name in names if "," in name]
    if wrong:
        raise UsageError(
            "a class name in a list must hold no comma", got=f"'{wrong[0]}'",
            next_step="Write the names to a text file, one per line, and give its path.",
        )  # fmt: skip
    return ",".join(names)
