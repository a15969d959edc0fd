"""The Python API: what `import captune` offers. Nothing here prints; PyTorch and Ray are imported when first used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune import interruption
from captune.config import Config, MachineConfig, StudyConfig, TaskConfig, refuse_unused_shots
from captune.decisions.criteria import resolve_criterion
from captune.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from captune.adapted import AdaptedModel
    from captune.records import StudyRecord

__all__ = ["Study", "adapt", "datasets", "load", "open_study", "run"]


_CHOSEN = ("advice", "name", "config_id", "config", "reason", "sentence", "weights", "expected")


class Study:
    """A study on disk, finished or not, as tables.

    Attributes:
        directory: where it lies.
    """

    def __init__(self, record: StudyRecord) -> None:
        self._record = record
        self.directory = record.directory

    def __repr__(self) -> str:
        return f"<captune.Study {self._record.name}: {self.advice or 'no choice yet'}>"

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self._record.name

    @property
    def trials(self) -> pd.DataFrame:
        """One row per reference, screening and search trial: its settings, selection score, report metric."""
        from captune.results.tables import trials_table

        return trials_table([self._record])

    @property
    def epochs(self) -> pd.DataFrame:
        """One row per trial and epoch."""
        from captune.results.tables import epochs_table

        return epochs_table([self._record])

    @property
    def candidates(self) -> pd.DataFrame:
        """What the choice compared, best first: name, config_id, mean_score, sd, num_seeds; empty before the choice."""
        import pandas as pd

        chosen = self._record.choice
        columns = ["name", "config_id", "mean_score", "sd", "num_seeds"]
        table = pd.DataFrame(list(chosen.candidates) if chosen is not None else [], columns=columns)
        return table.sort_values("mean_score", ascending=False, kind="stable", ignore_index=True)

    @property
    def choice(self) -> dict[str, Any] | None:
        """What the study chose before it read a test label: `advice`, `name`, `config_id`, `config`, `reason`,
        `sentence`, `weights`, `expected`.
        """
        chosen = self._record.choice
        if chosen is None:
            return None
        return {name: getattr(chosen, name) for name in _CHOSEN}

    @property
    def advice(self) -> str | None:
        """What to do, in words; None before the choice."""
        chosen = self._record.choice
        return None if chosen is None else chosen.sentence or chosen.advice

    @property
    def best_config(self) -> dict[str, Any] | None:
        """The advised method and settings, as `captune.adapt(config=…)` takes them; None before the choice."""
        chosen = self._record.choice
        if chosen is None or not (chosen.advised or chosen.config):
            return None
        return dict(chosen.advised) or {"method": self._record.method, **chosen.config}

    def report(self) -> Path:
        """Write every table and figure again; returns the page, report.html."""
        from captune.results.report import report_study

        return report_study(self._record)[-1]


def run(
    images: str | Path | None = None,
    class_names: Sequence[str] | str | Path | None = None,
    *,
    dataset: str | None = None,
    paradigm: str = "ul",
    method: str = "cap",
    trials: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> Study:
    """Run a study: search configurations, confirm the best over seeds, choose, read the test labels, report.

    Args:
        images: a folder of images; short for `dataset="folder:DIR"`.
        class_names: names of the classes, or a file of them.
        dataset: a dataset's name, or folder:DIR, csv:FILE, features:FILE, as on the command line.
        paradigm: ul, ssl, trzsl or tft.
        method: a method's name; "auto" for one study over several.
        trials: configurations to try, the default one included; None: the usual number (12; 48 on frozen
            features of at most 256 numbers, which train in packs for little).
        out: the study's directory; runs/NAME if None.
        resume: continue the study in the directory.
        options: any other option of `captune run` by its name, or any setting of the method, which is then fixed:
            `confirm_top`, `concurrency`, `dashboard`, `backbone`, `epochs`, `margin_scale`, …

    Returns:
        The finished study.

    Raises:
        UsageError: an option is unknown (the nearest is named), or the directory holds another study.
        StudyError: every trial failed.
        KeyboardInterrupt: on Ctrl-C or SIGTERM. Finished trials are kept, and `resume=True` continues.

    Example:
        >>> import captune
        >>> study = captune.run(dataset="digits", trials=4, epochs=2)  # doctest: +SKIP
        >>> study.trials[["key", "score", "metric"]]  # doctest: +SKIP
        >>> model = captune.adapt(dataset="digits", config=study.best_config)  # doctest: +SKIP
    """
    from captune.algorithms import method_named
    from captune.algorithms.automatic import AUTO, PORTFOLIO, starting_configs
    from captune.tuning.loggers import check_loggers

    place = _dataset(images, dataset)
    methods = PORTFOLIO if method == AUTO else (method,)
    classes = [method_named(name).config_class for name in methods]
    cell, search, machine, *own = split_options(options, TaskConfig, StudyConfig, MachineConfig, *classes)
    fixed = {name: value for part in own for name, value in part.items()}
    if class_names is not None:
        cell["class_names"] = _names(class_names)
    task = TaskConfig.parse({**cell, "dataset": place, "paradigm": paradigm}, where="run")
    refuse_unused_shots(task)
    fixed = {**search.pop("fixed", {}), **fixed}
    starting_configs(method, task, fixed, search.get("preset"), where="run")
    values = {**search, "task": task.model_dump(), "method": method, "fixed": fixed}
    values |= {} if trials is None else {"trials": trials}
    study = StudyConfig.parse(values, where="run")
    resolve_criterion(study.select_by, task.paradigm)
    how = MachineConfig.parse(machine, where="run")
    check_loggers(how.logger)

    from captune.studies.planning import plan_study
    from captune.studies.running import Settings, run_studies
    from captune.tuning.describe import cell_name

    name = cell_name(task.dataset, task.paradigm, method)
    directory = Path("runs", name) if out is None else Path(out).expanduser()
    settings = Settings(**how.model_dump(), resume=resume)
    with interruption.handled():
        (record,) = run_studies([plan_study(study, directory.absolute(), resume=resume)], settings)
    return Study(record)


def open_study(path: str | Path) -> Study:
    """Open a study on disk, finished, running or interrupted; nothing in it is changed.

    Args:
        path: the directory that `captune run` or `captune.run` wrote.

    Raises:
        RecordError: no study is there.

    Example:
        >>> import captune
        >>> study = captune.open_study("runs/digits-ul-cap")  # doctest: +SKIP
        >>> study.trials.nlargest(3, "score")  # doctest: +SKIP
    """
    from captune.results.load import load_study

    return Study(load_study(Path(path).expanduser()))


def load(
    path: str | Path, *, backbone: str | None = None, pretrained: str | None = None, device: str = "auto"
) -> AdaptedModel:
    """Open an adapted model: what `adapt`, `captune adapt`, `captune export` or a finished study wrote.

    Args:
        path: the folder, or the file in it. A study's folder holds `checkpoint.safetensors` if the advised model could
            be saved; if not, the model in its folder `adapted` is opened, which `captune predict` makes once.
        backbone: open_clip model name, if the recorded one has another name on this machine.
        pretrained: weights, if the recorded ones have moved.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        CheckpointError: there is no checkpoint, or it belongs to another backbone.

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
        method: a method's name; None: the one that `config` names, else cap.
        config: best_config.yaml of a study, any file of trial settings, or a mapping of them.
        out: the folder to write to: checkpoint, predictions, epochs, metrics. It must not hold another adaptation.
        seed: of the training.
        device: auto, cpu, cuda or cuda:N.
        options: any other option of `captune adapt` by its name, or any setting of the method: `backbone`,
            `pretrained`, `shots`, `epochs`, `margin_scale`, …

    Returns:
        The adapted model; `captune.load(out)` opens it again.

    Raises:
        UsageError: no images are given, an option is unknown (the nearest is named), or a value is out of range.
        DataError, ModelError: images or weights cannot be used.

    Example:
        >>> import captune
        >>> model = captune.adapt(dataset="digits", method="zero_shot", out="frozen")
        >>> model.class_names[:3]
        ('zero', 'one', 'two')
    """
    from captune.adapting import adapt_once, check_out, configuration
    from captune.algorithms import method_named

    known = _dataset(images, dataset)
    source = dict(config) if isinstance(config, Mapping) else None if config is None else Path(config).expanduser()
    named = method or (source.get("method") if isinstance(source, dict) else None) or "cap"
    learned = {"learn_from": options.pop("learn_from")} if "learn_from" in options else {}
    cell, settings = split_options(options, TaskConfig, method_named(named).config_class)
    settings |= learned
    if class_names is not None:
        cell["class_names"] = _names(class_names)
    task = TaskConfig.parse({**cell, "dataset": known, "paradigm": paradigm}, where="adapt")
    refuse_unused_shots(task)
    name, trial, role = configuration(task, method=method, config=source, settings=settings, where="adapt")
    place = Path(out).expanduser().absolute()
    check_out(place)
    from captune.training.notes import cell_notes

    with interruption.handled():
        adapt_once(task, name, trial, place, seed=seed, role=role, device=device, notes=list(cell_notes(task)))
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
    """Divide options among configuration classes by their fields; a field of several classes goes to the first.

    Raises:
        UsageError: no class has the field; the message names the nearest.
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


def _dataset(images: str | Path | None, dataset: str | None) -> str:
    from captune.data.catalog import check_dataset_name

    if (images is None) == (dataset is None):
        raise UsageError("either images or dataset must be given", got="both" if images is not None else "neither")
    name = dataset if dataset is not None else f"folder:{Path(str(images)).expanduser()}"
    check_dataset_name(name)
    return name


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
