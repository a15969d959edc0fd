"""Configuration: what a trial, a cell and a study are made of.

Models are frozen and refuse unknown keys with the nearest known name; every error of a file is reported at once.
`TrialConfig` holds what every method shares; a method adds its own fields in a subclass beside its algorithm.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from captune.errors import ConfigError, did_you_mean

Paradigm = Literal["ul", "ssl", "trzsl", "tft"]
PARADIGMS: dict[str, str] = {
    "ul": "unsupervised learning: no labels, the pool is the training images",
    "ssl": "semi-supervised learning: a few labelled images a class, the pool is the rest of the training images",
    "trzsl": "transductive zero-shot learning: seen classes labelled, the pool is the unseen classes' training images",
    "tft": "transductive fine-tuning (Dhillon et al., ICLR 2020): the pool is the test images, labels sealed",
}
# A screening trial costs a tenth of a search trial.
SCREENED_A_TRIAL = 4
PARADIGM_ALIASES = {"transductive": "tft"}


class Config(BaseModel):
    """Base of all configurations: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: dict[str, Any], *, where: object = "configuration") -> Self:
        """Validate `values`, raising one `ConfigError` that lists every problem.

        Raises:
            ConfigError: unknown keys (with the nearest known one) or values out of range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(
                f"{cls.__name__} must be valid", got="\n  " + "\n  ".join(_problems(error, cls)), where=where
            ) from None

    def to_yaml(self) -> str:
        """The configuration as YAML, paths as text, fields in the order they are declared."""
        # libyaml's emitter, where PyYAML has it, writes the same ten times as fast: every trial writes one.
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        return str(yaml.dump(self.model_dump(mode="json"), Dumper=dumper, sort_keys=False))


ConfigT = TypeVar("ConfigT", bound=Config)


def _problems(error: ValidationError, cls: type[BaseModel]) -> list[str]:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            owner = _owner(cls, problem["loc"][:-1])
            lines.append(f"unknown option '{key}': {did_you_mean(str(problem['loc'][-1]), owner.model_fields)}")
        elif not key:  # what several fields must hold together
            lines.append(problem["msg"].removeprefix("Value error, "))
        else:
            line = f"{key}: {problem['msg']}, got {problem['input']!r}"
            if problem["type"] == "literal_error":
                line += _nearest(str(problem["input"]), problem.get("ctx", {}).get("expected", ""))
            lines.append(line)
    return lines


def _nearest(value: str, expected: str) -> str:
    """The nearest of pydantic's listing of what a literal may be, as a sentence; nothing where none is near."""
    near = get_close_matches(value, re.findall(r"'([^']+)'", expected), n=1)
    return f". Did you mean '{near[0]}'?" if near else ""


def _owner(cls: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    for part in path:
        annotation = cls.model_fields[str(part)].annotation if str(part) in cls.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            cls = annotation
    return cls


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping, by the safe loader.

    Raises:
        ConfigError: the file is missing, is not YAML, or is no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("a configuration file must be readable", got=error.strerror, where=path) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("a configuration file must be valid YAML", got=str(error), where=path) from None
    if not isinstance(values, dict):
        raise ConfigError("a configuration file must hold `key: value` pairs", got=type(values).__name__, where=path)
    return values


def _resolve_paradigm(value: Any) -> Any:
    return PARADIGM_ALIASES.get(value, value) if isinstance(value, str) else value


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()


PathField = Annotated[Path | None, AfterValidator(_absolute)]


class TaskConfig(Config):
    """A cell: the data, the paradigm and the model that is adapted."""

    dataset: str = Field(description="catalogue key, or folder:DIR, csv:FILE, features:FILE.npz")
    paradigm: Paradigm = Field(description="who is labelled and what the pool is")
    data_root: PathField = Field(None, description="where datasets lie; else $CAPTUNE_DATA, else ~/.cache/captune/data")
    cache_dir: PathField = Field(None, description="where stores and banks are built, per node; else $CAPTUNE_CACHE")
    protocol: Literal["coop", "paper"] = Field("coop", description="split files: CoOp's, or the paper's (GRIP)")
    backbone: str | None = Field(None, description="open_clip model name or 'tiny'; default from the dataset's row")
    pretrained: str | None = Field(None, description="tag, file, folder, hf-hub: or local-dir:; default from the row")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the frozen towers")
    kernels: Literal["auto", "plain"] = Field(
        "auto", description="plain: PyTorch's own on a GPU, no CUDA graphs, no Triton, no images in its memory"
    )
    shots: int | None = Field(None, ge=0, description="labelled images a class (default ssl 2, tft 0)")
    split_seed: int = Field(
        500, ge=0, description="of the seen/unseen draw (published: 500, 0, 200) and the held-out pool"
    )
    pool_imbalance: float = Field(1.0, ge=1, description="largest over smallest class of the pool, exponential")
    pool_fraction: float = Field(1.0, gt=0, le=1, description="share of the pool that is kept")
    open_set_fraction: float = Field(
        0.0, ge=0, lt=1, description="share of the classes that are not asked for and whose images stay in the pool"
    )
    shot_noise: float = Field(0.0, ge=0, lt=1, description="share of the labelled images that get a wrong label")
    holdout_fraction: float = Field(0.2, gt=0, lt=1, description="share of the pool held out of training for selection")
    unseal_pool: bool = Field(False, description="research: gives training the pool's true labels; stamps every output")
    template: str | None = Field(None, description="prompt template with one {}; default from the dataset's row")
    prompt_form: Literal["template", "published"] = Field(
        "template", description="METHOD 1: 'published' repeats the slip"
    )
    class_names: PathField = Field(None, description="YAML list of class names, overriding the dataset's")
    descriptions: PathField = Field(None, description="YAML of class descriptions for concept alignment")

    _paradigm_alias = field_validator("paradigm", mode="before")(_resolve_paradigm)

    @property
    def num_shots(self) -> int:
        """Labelled images a class, the paradigm's default filled in."""
        return self.shots if self.shots is not None else {"ssl": 2}.get(self.paradigm, 0)


class TrialConfig(Config):
    """What every method shares: the training budget, the optimiser, what is learned."""

    tuning: Literal["prompts", "features"] = Field(
        "prompts", description="learn prompts, or residuals on frozen features"
    )
    prompts: Literal["text", "image", "multimodal"] = Field("multimodal", description="which towers are prompted")
    num_context: int = Field(2, ge=1, le=16, description="context vectors n_ctx")
    prompt_depth: int = Field(8, ge=1, description="layers J that are prompted, cut to the tower")
    adapter_hidden: int = Field(128, ge=1, description="hidden width of the adapters")
    adapter_residual: float = Field(0.01, ge=0, le=10, description="weight of an adapter's output beside its input")
    inference_adapters: bool = Field(False, description="use the adapters when predicting")
    feature_dropout: float = Field(0.5, ge=0, lt=1, description="strong view of frozen features (tuning: features)")
    epochs: int = Field(50, ge=1, description="epochs E")
    steps_per_epoch: int = Field(50, ge=1, description="steps an epoch")
    batch_size: int = Field(32, ge=1, description="images a stream and step B")
    warmup_epochs: int = Field(1, ge=0, description="epochs of linear warm-up")
    learning_rate: float = Field(0.01, gt=0, description="peak learning rate of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum")
    weight_decay: float = Field(0.1, ge=0, description="SGD weight decay")
    flip_probability: float = Field(0.5, ge=0, le=1, description="horizontal flip of the strong view (published: 1)")
    crop_scale_min: float = Field(0.08, gt=0, le=1, description="smallest area share of the strong view's crop")
    micro_batch: int | None = Field(None, ge=1, description="images at once in a gradient forward; same mathematics")

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs <= epochs must hold, but got (warmup_epochs={self.warmup_epochs}, epochs={self.epochs})"
            )
        return self

    def with_values(self, values: dict[str, Any], *, where: object = "configuration") -> Self:
        """A validated copy with some fields replaced."""
        return type(self).parse({**self.model_dump(), **values}, where=where)


class StudyConfig(Config):
    """One study: a cell, a method, and how its configurations are searched, confirmed and reported."""

    task: TaskConfig
    method: str = "cap"
    space: PathField = Field(None, description="search-space YAML; default search_spaces/<method>.yaml")
    fixed: dict[str, Any] = Field(default_factory=dict, description="trial settings fixed from the command line")
    trials: int = Field(12, ge=1, description="search trials, the paper's configuration included")
    seed: int = Field(0, ge=0, description="root seed of the study")
    sampler: Literal["tpe", "random", "gp", "qmc", "cmaes", "nsga2"] = "tpe"
    scheduler: Literal["asha", "none"] = "asha"
    screen: Literal["none", "features"] = Field(
        "none", description="features: rank configurations on frozen features, promote the best to prompt tuning"
    )
    screen_trials: int | None = Field(None, ge=1, description="configurations screened; default 4 a search trial")
    select_by: str = Field("auto", description="selection criterion; auto: the paradigm's default")
    confirm_top: int = Field(3, ge=0, description="best configurations that are confirmed over fresh seeds")
    confirm_seeds: int = Field(3, ge=1, description="fresh seeds a confirmed configuration")
    stress: bool = Field(
        False, description="also re-run the choice on long-tailed, small and open-set pools, and with wrong shots"
    )
    objectives: Literal["single", "balance"] = Field(
        "single", description="'balance' adds pseudolabel balance (Pareto)"
    )
    max_failures: int = Field(1, ge=0, description="times a crashed trial is tried again")
    deterministic: bool = Field(False, description="one trial at a time, bit-reproducible")
    storage: str | None = Field(None, description="Optuna storage; default a journal file in the run's directory")

    @property
    def num_screen_trials(self) -> int:
        """Configurations to screen before the search, the default filled in."""
        if self.screen == "none":
            return 0
        return self.screen_trials if self.screen_trials is not None else SCREENED_A_TRIAL * self.trials
