"""Configuration: what a trial, a cell and a study are made of, and how studies are run.

Models are frozen and refuse unknown keys with the nearest known name; every error of a file is reported at once.
`TrialConfig` holds what every method shares; the methods' own settings are in captune/algorithms/configs.py.

A field's description is also the help text of the command-line option made from it (captune/cli/options.py): a new
field with a description is a new option of `captune run`, `adapt` and `compare`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from captune.config_base import COMMAND_LINE as COMMAND_LINE
from captune.config_base import Config as Config
from captune.config_base import Panel as Panel
from captune.config_base import read_yaml as read_yaml
from captune.durations import Duration
from captune.errors import UsageError

Paradigm = Literal["ul", "ssl", "trzsl", "tft"]
PARADIGMS: dict[str, str] = {
    "ul": "unsupervised learning: no labels, the pool is the training images",
    "ssl": "semi-supervised learning: a few labelled images per class, the pool is the rest of the training images",
    "trzsl": "transductive zero-shot learning: seen classes labelled, the pool is the unseen classes' training images",
    "tft": "transductive fine-tuning (Dhillon et al., ICLR 2020): the pool is the test images, labels sealed",
}
# Screening trials per search trial; each costs about a fortieth of a search trial with prompts.
SCREENED_A_TRIAL = 4
PARADIGM_ALIASES = {"transductive": "tft"}
USES_SHOTS = ("ssl", "tft")
"""Paradigms in which `shots` says how many images per class are labelled."""


def refuse_unused_shots(task: TaskConfig) -> None:
    """Refuse `shots` in a paradigm that does not label a number of images per class.

    Raises:
        UsageError: `shots` is given with ul or trzsl.
    """
    if task.shots is not None and task.paradigm not in USES_SHOTS:
        labels = "uses no labels" if task.paradigm == "ul" else "labels all images of the seen classes"
        raise UsageError(
            "--shots must come with a paradigm that labels a few images per class",
            got=f"--paradigm {task.paradigm}, which {labels}",
            next_step="Did you mean --paradigm ssl?",
        )


def _resolve_paradigm(value: Any) -> Any:
    return PARADIGM_ALIASES.get(value, value) if isinstance(value, str) else value


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()


PathField = Annotated[Path | None, AfterValidator(_absolute)]


MODEL = Panel("Model and class names")
HARDER = Panel("Harder pools")
OWN = Panel("Your own images (folder:, csv:)")
NO_OPTION = Panel(None)


def _names_or_file(value: Any) -> Any:
    """The absolute path of a file of class names, so that other processes find it; a list of names is left as it is."""
    text = str(value) if isinstance(value, Path) else value
    is_file = isinstance(text, str) and os.path.isfile(text)  # noqa: PTH113 - Path raises on long names
    if isinstance(text, str) and (is_file or "," not in text or text.endswith((".yaml", ".yml", ".txt"))):
        return str(Path(text).expanduser().absolute())
    return text


def own_images(dataset: str) -> str:
    """A dataset with the place of the user's own images made absolute; names of datasets are left as they are.

    A recorded study must find them from any working directory.
    """
    kind, _, place = dataset.partition(":")
    if kind not in ("folder", "csv", "features") or not place:
        return dataset
    try:
        return f"{kind}:{Path(place).expanduser().absolute()}"
    except RuntimeError:  # the home folder of an unknown user: reading it raises a better error
        return dataset


def own_database(address: str | None) -> str | None:
    """The address of a database with the file of SQLite made absolute, for the same reason."""
    head, slashes, file = (address or "").partition("sqlite:///")
    if head or not slashes or file[:1] in ("", "/", ":") or file.startswith("file:"):
        return address
    return f"{slashes}{Path(file).absolute()}"


NamesField = Annotated[str | None, BeforeValidator(_names_or_file)]


class TaskConfig(Config):
    """A cell: the data, the paradigm and the model that is adapted."""

    panel: ClassVar[str] = "Data"

    dataset: Annotated[str, AfterValidator(own_images)] = Field(
        description="a name from `captune datasets`, or folder:DIR, csv:FILE, features:FILE"
    )
    paradigm: Paradigm = Field(
        description="which images are labelled and which form the pool: ul: none, the training images; ssl: a few per "
        "class, the other training images; trzsl: those of the seen classes, the unseen classes' images; tft: none, "
        "the test images with their labels sealed"
    )
    data_root: PathField = Field(
        None, description="folder of the datasets; default $CAPTUNE_DATA, else ~/.cache/captune/data"
    )
    cache_dir: PathField = Field(
        None, description="folder for decoded images and features; default $CAPTUNE_CACHE, else ~/.cache/captune/store"
    )
    store: Literal["pixels", "jpeg"] = Field(
        "pixels", description="what is kept of each image: its pixels, or a JPEG a sixth as large"
    )
    protocol: Literal["coop", "paper"] = Field(
        "coop", description="split files: those of CoOp, or those of the CAP paper (as GRIP published them)"
    )
    shots: int | None = Field(None, ge=0, description="labelled images per class; default 2 for ssl, 0 for tft")
    split_seed: int = Field(
        500, ge=0, description="seed of the draw of seen classes (published: 500, 0, 200) and of the held-out images"
    )
    holdout_fraction: float = Field(0.2, gt=0, lt=1, description="fraction of the pool kept for the selection score")
    pool_imbalance: Annotated[float, HARDER] = Field(
        1.0, ge=1, description="make the pool long-tailed: size of the largest class over that of the smallest"
    )
    pool_fraction: Annotated[float, HARDER] = Field(1.0, gt=0, le=1, description="fraction of the pool that is used")
    present_fraction: Annotated[float, HARDER] = Field(1.0, gt=0, le=1, description="fraction of classes with images")
    open_set_fraction: Annotated[float, HARDER] = Field(
        0.0, ge=0, lt=1, description="fraction of the classes left out of the names while their images stay in the pool"
    )
    shot_noise: Annotated[float, HARDER] = Field(0.0, ge=0, lt=1, description="fraction of the labels that are wrong")
    backbone: Annotated[str | None, MODEL] = Field(
        None, description="name of an open_clip model, or tiny; default: the dataset's"
    )
    pretrained: Annotated[str | None, MODEL] = Field(
        None, description="weights: open_clip tag, .pt or .safetensors file, folder, hf-hub: or local-dir:"
    )
    interpolate_positions: Annotated[bool, MODEL] = Field(
        False, description="stretch position embeddings of another length than the model's instead of refusing them"
    )
    precision: Annotated[Literal["fp32", "bf16", "fp16"], MODEL] = Field(
        "fp32", description="number format of the frozen towers"
    )
    kernels: Annotated[Literal["auto", "plain"], MODEL] = Field(
        "auto",
        description="faster steps or plain PyTorch; auto: on a GPU recorded steps, Triton kernels and images kept in "
        "its memory, on a CPU steps for frozen features written by hand; plain: none of these",
    )
    template: Annotated[str | None, MODEL] = Field(
        None, description="prompt template with one {}; default: the dataset's"
    )
    prompt_form: Annotated[Literal["template", "published"], MODEL] = Field(
        "template",
        description="zero-shot prompts: the class name put into the template, or (published) appended to it, "
        "a slip in the authors' code",
    )
    class_names: Annotated[NamesField, MODEL] = Field(
        None,
        description="names of the classes: 'ring,bar,cup', a text file with one name per line, or a YAML file; with "
        "them a folder of images needs no labels",
    )
    descriptions: Annotated[PathField, MODEL] = Field(
        None, description="YAML file of class descriptions for concept alignment"
    )
    unseal_pool: Annotated[bool, NO_OPTION] = Field(
        False, description="research: gives training the pool's true labels; every output says so"
    )
    labels: Annotated[Literal["auto", "none"], OWN] = Field(
        "auto", description="whether labels are read; none: folders and label columns do not name classes"
    )
    pass_over: Annotated[str | None, OWN] = Field(None, description="folders to leave out (a,b)")
    image_column: Annotated[str | None, OWN] = Field(None, description="column of the image files (csv:); default path")
    label_column: Annotated[str | None, OWN] = Field(None, description="column of the labels (csv:); default label")
    split_column: Annotated[str | None, OWN] = Field(None, description="column of the splits (csv:); default split")
    allow_duplicates: Annotated[bool, OWN] = Field(
        False, description="allow images that are in the test split and in the training images as well"
    )
    max_unreadable: Annotated[float, OWN] = Field(
        0.01, ge=0, le=1, description="fraction of the images that may be unreadable; they are left out and counted"
    )
    pixels: Annotated[Literal["auto", "viewer", "open_clip"], OWN] = Field(
        "auto",
        description="how images are read: viewer turns them as EXIF says, scales 16-bit grey and puts transparency on "
        "white; open_clip does not; auto: viewer for folder: and csv:, open_clip for the named datasets",
    )
    follow_links: Annotated[bool, OWN] = Field(
        False, description="follow links that lead out of the data root, as DVC, git-annex and caches make them"
    )

    _paradigm_alias = field_validator("paradigm", mode="before")(_resolve_paradigm)

    @property
    def num_shots(self) -> int:
        """Labelled images per class, the paradigm's default filled in."""
        return self.shots if self.shots is not None else {"ssl": 2}.get(self.paradigm, 0)


class TrialConfig(Config):
    """What every method shares: the training budget, the optimiser, what is learned."""

    panel: ClassVar[str] = "Training (default: the method's settings, the dataset's budget)"

    tuning: Literal["prompts", "features"] = Field(
        "prompts", description="what is learned: prompts, or residuals on frozen features (far cheaper)"
    )
    prompts: Literal["text", "image", "multimodal"] = Field("multimodal", description="towers that get prompts")
    num_context: int = Field(2, ge=1, le=16, description="context vectors per prompt")
    prompt_depth: int = Field(8, ge=1, description="number of layers with prompts, cut to the depth of the tower")
    adapter_hidden: int = Field(128, ge=1, description="hidden width of the adapters")
    adapter_residual: float = Field(0.01, ge=0, le=10, description="weight of an adapter's output added to its input")
    inference_adapters: bool = Field(False, description="use the adapters when predicting")
    feature_dropout: float = Field(
        0.5, ge=0, lt=1, description="dropout that makes the strong view of frozen features (with tuning features)"
    )
    epochs: int = Field(50, ge=1, description="training epochs")
    steps_per_epoch: int = Field(50, ge=1, description="training steps per epoch")
    batch_size: int = Field(32, ge=1, description="images per step from the main samples, and as many from the pool")
    warmup_epochs: int = Field(1, ge=0, description="epochs over which the learning rate rises to its peak")
    learning_rate: float = Field(0.01, gt=0, description="peak learning rate of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(0.1, ge=0, description="weight decay of SGD")
    flip_probability: float = Field(
        0.5, ge=0, le=1, description="probability of a horizontal flip in the strong view (published: 1)"
    )
    crop_scale_min: float = Field(
        0.08, gt=0, le=1, description="smallest area of the strong view's crop, as a fraction"
    )
    micro_batch: int | None = Field(
        None, ge=1, description="images per forward and backward pass; saves memory, same result up to rounding"
    )

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


CONFIRMING = Panel("Confirmation and checks")
MACHINE = Panel("Machine")


class StudyConfig(Config):
    """One study: a cell, a method, and how its configurations are searched, confirmed and reported."""

    panel: ClassVar[str] = "Search"

    task: Annotated[TaskConfig, NO_OPTION]
    method: str = Field("cap", description="adaptation method")
    space: PathField = Field(None, description="search-space file; default: the method's, in search_spaces/")
    fixed: Annotated[dict[str, Any], NO_OPTION] = Field(
        default_factory=dict, description="trial settings fixed from the command line"
    )
    preset: Literal["paper"] | None = Field(
        None, description="paper: the settings, prompts, splits and budget of the paper (--show prints them)"
    )
    trials: int = Field(
        12, ge=1, description="configurations to try, the default one included; 48 on frozen features up to 256 wide"
    )
    seed: int = Field(0, ge=0, description="root seed of the study")
    sampler: Literal["tpe", "random", "gp", "qmc", "cmaes", "nsga2"] = Field(
        "tpe", description="Optuna sampler that proposes configurations"
    )
    scheduler: Literal["asha", "none"] = Field(
        "asha", description="early stopping: asha stops weak trials, none stops none"
    )
    stop_when_settled: bool = Field(False, description="end the search once it would gain less than its noise")
    screen: Literal["none", "features"] = Field(
        "none",
        description="first rank many configurations on frozen features, at a fraction of the cost, "
        "and search from the best (features); or do not (none)",
    )
    screen_trials: int | None = Field(
        None, ge=1, description=f"configurations to screen; default {SCREENED_A_TRIAL} per search trial"
    )
    select_by: str = Field("auto", description="selection criterion; auto: the paradigm's default")
    objectives: Literal["single", "balance"] = Field(
        "single",
        description="what is maximised: the selection score, or (balance) also the balance of the pseudolabels",
    )
    confirm_top: Annotated[int, CONFIRMING] = Field(
        3, ge=0, description="number of best configurations that are run again with fresh seeds"
    )
    confirm_seeds: Annotated[int, CONFIRMING] = Field(
        3, ge=1, description="fresh seeds per confirmed configuration; 6 where --trials is 48 by default"
    )
    stress: Annotated[bool, CONFIRMING] = Field(
        False, description="also run the chosen configuration on long-tailed, small and open-set pools"
    )
    max_failures: Annotated[int, MACHINE] = Field(1, ge=0, description="how often a crashed trial is tried again")
    deterministic: Annotated[bool, MACHINE] = Field(
        False, description="one trial at a time, so that the study repeats bit for bit"
    )
    storage: Annotated[str | None, MACHINE, AfterValidator(own_database)] = Field(
        None, description="database for the Optuna copy of the study; default: a file in the study's directory"
    )
    images: Annotated[bool, MACHINE] = Field(True, description="put small pictures of the images into the report page")

    @property
    def num_screen_trials(self) -> int:
        """Configurations to screen before the search, the default filled in."""
        if self.screen == "none":
            return 0
        return self.screen_trials if self.screen_trials is not None else SCREENED_A_TRIAL * self.trials


class MachineConfig(Config):
    """How studies are run, as opposed to what they are: these may differ each time a study is continued."""

    panel: ClassVar[str] = "Machine"

    concurrency: int | None = Field(None, ge=1, description="trials in parallel; default: as many as fit")
    cpus_per_trial: float | None = Field(None, gt=0, description="CPUs (threads) per trial; default 1")
    gpus_per_trial: float | None = Field(
        None, ge=0, description="GPUs per trial (0.25: four trials share one); default 1 where there are GPUs"
    )
    memory_per_trial: float | None = Field(None, ge=0.1, description="GB of memory per trial; default: as measured")
    time_budget: Duration | None = Field(
        None, description="time for all studies of the command with their resumes (90m, 6h, 2d), confirmation included"
    )
    gpu_hours: float | None = Field(
        None, gt=0, description="GPU hours for all studies of the command, counted in the same way"
    )
    trial_timeout: Duration | None = Field(None, description="time after which an unfinished trial fails (30m)")
    allow_cpu: bool = Field(False, description="train on the CPU where a GPU cannot be used, instead of refusing")
    address: str | None = Field(None, description="a running Ray cluster: auto, HOST:PORT or ray://HOST:PORT")
    dashboard: bool = Field(True, description="start Ray's dashboard")
    dashboard_host: str | None = Field(None, description="address the dashboard listens on; default: only this machine")
    logger: str = Field(
        "tensorboard", description="where progress is logged: tensorboard, mlflow, wandb (several: a,b) or none"
    )
