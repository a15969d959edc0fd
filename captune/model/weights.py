"""From a name and a source of weights to an open_clip model: found, matched with its activation, opened without pickle.

Rules for QuickGELU, which no weight file states and the wrong choice of which only costs accuracy, silently:

1. a name that ends in "-quickgelu" has it;
2. a tag has what open_clip's table says of it (OpenAI's, MetaCLIP's and DFN's weights under plain names get it);
3. a folder with an open_clip_config.json, or a Hub repository, has what its configuration says;
4. a file has it when it is a TorchScript archive or holds OpenAI's three extra entries (the form of OpenAI's release),
   or when its name or its folder's name says "openai" or "quickgelu", or a tag that the table marks so; else it has
   what the model's configuration says. The decision is logged and kept in `Backbone.notes`.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch
from open_clip.factory import convert_state_dict, resize_pos_embed, resize_text_pos_embed
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor, nn

from captune.errors import CaptuneError, ModelError, UsageError, did_you_mean
from captune.model import use_timm
from captune.model.configuration import CONFIG_FILE, read_configuration, without_remote_code
from captune.model.hub import offline_if_unreachable
from captune.model.torchscript import is_torchscript, read_torchscript
from captune.seeding import derive_seed

LOG = logging.getLogger(__name__)
TINY = "tiny"
TINY_DIR = Path(__file__).parent / "assets" / "tiny"
RANDOM = "random"
VOCABULARY = "bpe_vocabulary.txt.gz"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
# The weights of a folder with an open_clip_config.json, in open_clip's own order.
_MODEL_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
# Entries that OpenAI's archives hold beside the weights.
_OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
_QUICK_SUFFIX = "-quickgelu"


@dataclass
class Source:
    """Where a model's architecture and weights come from.

    Attributes:
        name: what open_clip calls the architecture, or a `local-dir:` or `hf-hub:` address.
        tag: open_clip's pretrained tag, or None.
        file: a weight file, or None.
        random: whether the weights stay as initialised (seeded).
        quick_gelu: force QuickGELU.
        folder: the folder of a `local-dir:` model, or None.
        notes: what was decided, in sentences.
    """

    name: str
    tag: str | None = None
    file: Path | None = None
    random: bool = False
    quick_gelu: bool = False
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)


def find_source(name: str | None, pretrained: str | None) -> Source:
    """Resolve a backbone's name and weights without reading them.

    Args:
        name: open_clip model name, "tiny", a folder, `local-dir:DIR` or `hf-hub:ORG/REPO`; None where `pretrained` is
            one of the last three.
        pretrained: a tag, a file, a folder, `local-dir:`, `hf-hub:`, "random", or None where the name brings weights.

    Raises:
        UsageError: an unknown name or tag, a file or folder that is not there, or no weights named.
    """
    if pretrained is not None and (pretrained.startswith(("local-dir:", "hf-hub:")) or _has_config(Path(pretrained))):
        # A self-contained source brings its own architecture; the name is then only what a person calls it.
        name, pretrained = pretrained, None
    if name is None:
        raise UsageError("a backbone must be named", next_step="Give --backbone, for example ViT-B-32.")
    if name == TINY:
        source = Source(f"local-dir:{TINY_DIR}", folder=TINY_DIR)
    elif name.startswith("hf-hub:"):
        source = Source(name)
    elif name.startswith("local-dir:") or Path(name).is_dir():
        folder = Path(name.removeprefix("local-dir:")).expanduser().absolute()
        if not _has_config(folder):
            raise UsageError(
                f"a model folder must hold {CONFIG_FILE}",
                got="none" if folder.is_dir() else "no such folder",
                where=folder,
                next_step="For weights without it, name the architecture by --backbone and the file by --pretrained.",
            )
        source = Source(f"local-dir:{folder}", folder=folder)
    else:
        source = _built_in(name)
    return _with_weights(source, name, pretrained)


def is_published_name(text: str) -> bool:
    """Whether a name or source of weights is one of captune's, open_clip's or a hub's, and no place on this machine."""
    if text in (TINY, RANDOM) or text.startswith("hf-hub:"):
        return True
    if Path(text).expanduser().exists():
        return False  # a file of that name would be taken before the tag
    architecture, known = text.replace("/", "-"), open_clip.list_models()
    tags = {tag for _, tag in open_clip.list_pretrained()}
    return text in tags or architecture in known or architecture.removesuffix(_QUICK_SUFFIX) in known


def _has_config(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file()


def _built_in(name: str) -> Source:
    architecture, known = name.replace("/", "-"), open_clip.list_models()
    if architecture in known:
        return Source(architecture)
    if architecture.removesuffix(_QUICK_SUFFIX) in known:
        return Source(architecture.removesuffix(_QUICK_SUFFIX), quick_gelu=True)
    hint = did_you_mean(architecture, [*known, TINY])
    if hint.startswith("Known"):
        hint = "open_clip.list_models() names them all; ViT-B-32, ViT-B-16 and ViT-L-14 are among them, and 'tiny'."
    raise UsageError("--backbone must name an open_clip model", got=repr(name), next_step=hint)


def _with_weights(source: Source, name: str, pretrained: str | None) -> Source:
    if pretrained is None:
        if source.folder is not None or source.name.startswith("hf-hub:"):
            return source
        raise UsageError(
            f"weights must be named for {name}",
            next_step=f"Give --pretrained: a tag ({_some_tags(source.name)}), a .safetensors, .pt or .bin file, a "
            "folder, or hf-hub:ORG/REPO. `random` is an untrained model, for tests. --backbone tiny needs none.",
        )
    if pretrained == RANDOM:
        source.random = True
        source.notes.append(f"{name}: random weights, for tests and benchmarks only")
        return source
    path = Path(pretrained).expanduser()
    if path.is_dir():
        source.file = _weight_file(path)
    elif path.is_file():
        source.file = path.absolute()
    elif _looks_like_path(pretrained):
        raise UsageError("--pretrained must name an existing file", got="no such file", where=path.absolute())
    else:
        return _with_tag(source, name, pretrained)
    _decide_activation(source, name)
    return source


def _weight_file(folder: Path, preferred: Sequence[str] = ()) -> Path:
    files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
    for name in preferred:
        if folder / name in files:
            return (folder / name).absolute()
    safe = [path for path in files if path.suffix == ".safetensors"]
    if len(safe) == 1 or len(files) == 1:
        return (safe or files)[0].absolute()
    raise UsageError(
        "a folder of weights must hold one weight file",
        got=", ".join(path.name for path in files[:5]) or "none",
        where=folder,
        next_step="Name the file itself by --pretrained.",
    )


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.startswith((".", "~")) or text.endswith(_WEIGHT_SUFFIXES)


def _some_tags(model: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(model)
    return ", ".join(tags[:6]) + (", …" if len(tags) > 6 else "") if tags else "none is published for it"


def _with_tag(source: Source, name: str, tag: str) -> Source:
    if source.folder is not None or source.name.startswith("hf-hub:"):
        raise UsageError(
            f"{name} brings its own weights, so --pretrained must be left out or be a file",
            got=repr(tag),
            next_step=f"To use the tag, name its model: --backbone ViT-B-32 --pretrained {tag}.",
        )
    config = open_clip.get_pretrained_cfg(source.name, tag)
    if not config:
        known = open_clip.list_pretrained_tags_by_model(source.name)
        hint = did_you_mean(tag, known) if known else "It has no tags: give a file or a folder."
        raise UsageError(f"--pretrained must be a tag of {name}, a file or a folder", got=repr(tag), next_step=hint)
    trained_quick = bool(config.get("quick_gelu", False))
    forced = source.quick_gelu or source.name.endswith(_QUICK_SUFFIX)
    if forced and not trained_quick:
        plain = name.removesuffix(_QUICK_SUFFIX)
        raise UsageError(
            f"weights '{tag}' were trained with GELU, so they must not run with QuickGELU",
            got=repr(name),
            next_step=f"Use --backbone {plain}.",
        )
    source.tag, source.quick_gelu = tag, trained_quick
    if trained_quick:
        source.notes.append(f"{name}: QuickGELU, as its weights '{tag}' were trained")
    return source


def _decide_activation(source: Source, name: str) -> None:
    """Rule 4 of the module's head, as far as names tell; the content has its say when it is read."""
    file = source.file
    assert file is not None  # for the type checker
    if source.folder is not None or source.quick_gelu or source.name.endswith(_QUICK_SUFFIX):
        return
    words = f"{file.parent.name}/{file.name}".lower().replace("-", "_")
    tags = open_clip.list_pretrained_tags_by_model(source.name)
    quick = {tag for tag in tags if open_clip.get_pretrained_cfg(source.name, tag).get("quick_gelu")}
    # The longest tag that the name holds decides: metaclip_400m beside metaclip_400m_x.
    named = sorted((tag for tag in tags if re.search(rf"(?<![a-z0-9]){re.escape(tag)}(?![a-z0-9])", words)), key=len)
    hints = [hint for hint in ("openai", "quickgelu") if hint in words]
    if hints or (named and named[-1] in quick):
        source.quick_gelu = True
        source.notes.append(f"{name}: QuickGELU, since the weights' name says '{(hints or named)[-1]}'")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's root-logger messages, which would set up logging for the whole process."""
    root, keep = logging.getLogger(), logging.NullHandler()
    root.addHandler(keep)
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        root.removeHandler(keep)


def open_model(source: Source) -> nn.Module:
    """The open_clip model in fp32 on the CPU, in evaluation mode, without gradients.

    Raises:
        ModelError: weights that cannot be fetched, read without pickle, or fitted.
    """
    config = model_config(source)
    if "timm_model_name" in config.get("vision_cfg", {}):
        use_timm()
    if source.folder is not None and source.file is None and not source.random:
        source.file = _weight_file(source.folder, preferred=_MODEL_FILES)
    try:
        with without_remote_code(config):
            if source.random or source.file is not None:
                model = _open_local(source)
            else:
                with _quiet(), offline_if_unreachable():
                    model = open_clip.create_model(
                        source.name, pretrained=source.tag, force_quick_gelu=source.quick_gelu, require_pretrained=True
                    )
    except CaptuneError:
        raise
    except ImportError as error:
        raise ModelError(
            "this model needs a package that is not installed",
            got=str(error).splitlines()[0],
            where=source.name,
            next_step="Install it, or use a model with open_clip's own towers such as ViT-B-32.",
        ) from None
    except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:  # the last: open_clip's own checks
        raise _cannot_open(source, error) from None
    for note in source.notes:
        LOG.info(note)
    return model.eval().requires_grad_(False)


def _open_local(source: Source) -> nn.Module:
    state: dict[str, Tensor] | None = None
    if source.file is not None:
        state = read_weights(source.file)
        extras = [state.pop(key) for key in _OPENAI_EXTRAS if key in state]
        plain = source.folder is None and not source.name.endswith(_QUICK_SUFFIX) and not source.quick_gelu
        if plain and (extras or is_torchscript(source.file)):
            source.quick_gelu = True
            source.notes.append(f"{source.file.name}: QuickGELU, since it has the form of OpenAI's release")
        elif plain:
            source.notes.append(
                f"{source.file.name}: GELU, as nothing says otherwise; for weights trained with QuickGELU (OpenAI's, "
                f"MetaCLIP's, DFN's) name the backbone {source.name}{_QUICK_SUFFIX}"
            )
    # Random weights are a function of the name alone, so that every process has the same.
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(derive_seed(0, "random backbone", source.name))
        model = open_clip.create_model(
            source.name, load_weights=False, pretrained_text=False, force_quick_gelu=source.quick_gelu
        )
    if state is not None:
        _fit(model, state)
    return model


def _fit(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load weights strictly, after the same repairs that open_clip makes on loading a file."""
    state = convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for key in ("logit_scale", "logit_bias"):
        target = getattr(model, key, None)
        if target is None:
            continue
        if key in state:
            state[key] = state[key].reshape(target.shape)
        elif key == "logit_bias":
            state[key] = torch.zeros_like(target)
    resize_pos_embed(state, model)
    resize_text_pos_embed(state, model)
    model.load_state_dict(state, strict=True)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .bin, .pt or .pth file, never by unrestricted pickle.

    A TorchScript archive (the form of OpenAI's release) is read by `read_torchscript`, which runs nothing in it.

    Raises:
        ModelError: a damaged file, or one that holds more than tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == ".safetensors":
                return dict(safetensors.torch.load_file(path))
            if is_torchscript(path):
                return read_torchscript(path)
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds for one thing: this file cannot be read
        raise ModelError(
            "a weight file must be whole and hold nothing but tensors",
            got=_first_line(error),
            where=path,
            next_step="Fetch it again, or save the model's state_dict as safetensors. Pickled objects are never run.",
        ) from None
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError("a weight file must hold a state_dict", got=type(content).__name__, where=path)
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _cannot_open(source: Source, error: Exception) -> ModelError:
    text = str(error)
    if source.file is not None or "size mismatch" in text:
        problems = [line.strip() for line in text.splitlines()[1:] if line.strip()]
        return ModelError(
            f"the weights must fit {source.name}",
            got=f"{len(problems)} problems, first: {problems[0][:200] if problems else text[:200]}",
            where=source.file or source.tag or source.name,
            next_step="Name the architecture they were trained with by --backbone.",
        )
    if source.tag is not None or source.name.startswith("hf-hub:"):
        what = f"{source.name} {source.tag}" if source.tag else source.name
        return ModelError(
            f"the weights of {what} must be on disk or the network reachable",
            got=_first_line(error).split(". Last error")[0],
            next_step="Copy the weight file here and give its path by --pretrained; or use --backbone tiny, "
            "which needs no download.",
        )
    return ModelError(f"{source.name} must open as an open_clip model", got=_first_line(error))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def model_config(source: Source) -> dict[str, Any]:
    """The architecture as open_clip_config.json states it, with the activation in force.

    Raises:
        ModelError: the configuration cannot be read, or asks for more than towers.
    """
    config = read_configuration(source.name)
    return config | {"quick_gelu": True} if source.quick_gelu else config
