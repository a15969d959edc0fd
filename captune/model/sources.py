"""From a backbone's name and `--pretrained` to where its weights lie and how they are to run; nothing is opened here.

No weight file says whether it was trained with QuickGELU, and a wrong choice costs accuracy in silence. The rules:

1. a name that ends in "-quickgelu" has it;
2. a tag has what open_clip's table says of it (OpenAI's, MetaCLIP's and DFN's weights under plain names get it);
3. a folder with an open_clip_config.json, or a Hub repository, has what its configuration says;
4. a file has it when it is a TorchScript archive or holds OpenAI's three extra entries (the form of OpenAI's release),
   or when its name or its folder's name says "openai" or "quickgelu", or a tag that the table marks so; else it has
   what the model's configuration says. The decision is logged and kept in `Backbone.notes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip

from captune.errors import UsageError, did_you_mean
from captune.model.configuration import CONFIG_FILE
from captune.model.published_weights import of_hub_name, published_preprocessing, tags_named_in

TINY = "tiny"
TINY_DIR = Path(__file__).parent / "assets" / "tiny"
RANDOM = "random"
VOCABULARY = "bpe_vocabulary.txt.gz"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
# The weights of a folder with an open_clip_config.json, in open_clip's own order.
INDEX_SUFFIX = ".index.json"
MODEL_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
QUICK_SUFFIX = "-quickgelu"


@dataclass
class Source:
    """Where a model's architecture and weights come from.

    Attributes:
        name: what open_clip calls the architecture, or a `local-dir:` or `hf-hub:` address.
        tag: open_clip's pretrained tag, or None.
        file: a weight file, or None.
        random: whether the weights stay as initialised (seeded).
        quick_gelu: force QuickGELU.
        named_quick: whether that is because the name says so.
        folder: the folder of a `local-dir:` model, or None.
        preprocessing: how the weights want images, as open_clip's preprocess_cfg; empty: as the name says.
        interpolate_positions: stretch position embeddings of another length instead of refusing them.
        notes: what was decided, in sentences.
    """

    name: str
    tag: str | None = None
    file: Path | None = None
    random: bool = False
    quick_gelu: bool = False
    named_quick: bool = False
    folder: Path | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    interpolate_positions: bool = False
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
    name, pretrained, notes = _from_hub_names(name, pretrained)
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
    source.notes += notes
    return _with_weights(source, name, pretrained)


def _from_hub_names(name: str | None, pretrained: str | None) -> tuple[str | None, str | None, list[str]]:
    """Repositories of the Hub whose weights open_clip publishes, by open_clip's names."""
    for place in (pretrained, name):
        found = None if place is None or Path(place).expanduser().exists() else of_hub_name(place)
        if found is not None:
            tag = found[1] if place == pretrained or pretrained is None else pretrained
            return found[0], tag, [f"{place} is open_clip's {found[0]} with the weights '{found[1]}'"]
    return name, pretrained, []


def is_published_name(text: str) -> bool:
    """Whether a name or source of weights is one of captune's, open_clip's or a hub's, and no place on this machine."""
    if text in (TINY, RANDOM) or text.startswith("hf-hub:"):
        return True
    if Path(text).expanduser().exists():
        return False  # a file of that name takes precedence over the tag
    architecture, known = text.replace("/", "-"), open_clip.list_models()
    tags = {tag for _, tag in open_clip.list_pretrained()}
    named = text in tags or architecture in known or architecture.removesuffix(QUICK_SUFFIX) in known
    return named or of_hub_name(text) is not None


def _has_config(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file()


def _built_in(name: str) -> Source:
    architecture, known = name.replace("/", "-"), open_clip.list_models()
    if architecture in known:
        return Source(architecture)
    if architecture.removesuffix(QUICK_SUFFIX) in known:
        return Source(architecture.removesuffix(QUICK_SUFFIX), quick_gelu=True, named_quick=True)
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
        source.file = weight_file_in(path)
    elif path.is_file():
        source.file = path.absolute()
    elif _looks_like_path(pretrained):
        raise UsageError("--pretrained must name an existing file", got="no such file", where=path.absolute())
    else:
        return _with_tag(source, name, pretrained)
    _decide_activation(source, name)
    _decide_preprocessing(source)
    return source


def weight_file_in(folder: Path, preferred: Sequence[str] = ()) -> Path:
    files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
    for name in preferred:
        if folder / name in files:
            return (folder / name).absolute()
    safe = [path for path in files if path.suffix == ".safetensors"]
    indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    if len(indices) == 1 and len(files) > 1:
        return indices[0].absolute()
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
    forced = source.quick_gelu or source.name.endswith(QUICK_SUFFIX)
    if forced and not trained_quick:
        plain = name.removesuffix(QUICK_SUFFIX)
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
    """Rule 4 of the module's docstring, as far as names decide it; `weights` applies the rest once the file is read."""
    file = source.file
    assert file is not None  # for the type checker
    if source.folder is not None or source.quick_gelu or source.name.endswith(QUICK_SUFFIX):
        return
    words = f"{file.parent.name}/{file.name}"
    tags = open_clip.list_pretrained_tags_by_model(source.name)
    quick = {tag for tag in tags if open_clip.get_pretrained_cfg(source.name, tag).get("quick_gelu")}
    # The longest tag that the name holds decides: metaclip_400m beside metaclip_400m_x.
    named = tags_named_in(source.name, words)
    hints = [hint for hint in ("openai", "quickgelu") if hint in words.lower()]
    if hints or (named and named[-1] in quick):
        source.quick_gelu = True
        source.notes.append(f"{name}: QuickGELU, since the weights' name says '{(hints or named)[-1]}'")


def _decide_preprocessing(source: Source) -> None:
    file = source.file
    assert file is not None  # for the type checker
    if source.folder is not None:
        return  # its configuration says it
    source.preprocessing, note = published_preprocessing(source.name, f"{file.parent.name}/{file.name}")
    if note is not None:
        source.notes.append(note)
