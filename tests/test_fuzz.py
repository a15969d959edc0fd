"""Thousands of generated inputs: whatever a file holds, captune reads it or refuses it in its own words.

A run draws `EXAMPLES` inputs for each of nine kinds, 2,700 in all, from one seed, which is printed; the same
CAPTUNE_FUZZ_SEED draws the same again.
"""

# ruff: noqa: E501

from __future__ import annotations

import io
import json
import os
import secrets
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from captune.algorithms import method_named
from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.data.decode import Unreadable, decode_file
from captune.data.feature_bank import read_feature_file
from captune.data.layouts import read_coop_split
from captune.data.overrides import read_class_names
from captune.errors import CaptuneError
from captune.model.weight_files import read_weights
from captune.preprocessing import Preprocessing
from captune.records.journal import Journal, read_damaged_journal, read_journal
from captune.space import load_space

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SEED = int(os.environ.get("CAPTUNE_FUZZ_SEED") or secrets.randbelow(2**32))
EXAMPLES = 300
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=False, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module", autouse=True)
def seed_is_printed(pytestconfig: pytest.Config) -> None:
    """The seed, so that a failure can be drawn again."""
    manager = pytestconfig.pluginmanager.getplugin("capturemanager")
    with manager.global_and_fixture_disabled():
        print(f"\nCAPTUNE_FUZZ_SEED={SEED}")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One folder for all inputs of a kind."""
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
awkward = st.sampled_from(
    ["", " ", "a", "b", "zero[/b]", ":cat:", "../x", "/etc/passwd", "C:\\x", "yes", "no", "1e-4", "-1", "2000000000", "\ufeff",
     "a/../a", "\u202e", "é", "e\u0301", "~", "null", "nan", "Infinity", "{}", "{0}", "%s", "train", "test", "0", "1"]
)  # fmt: skip
words = awkward | anything
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | words
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(words, inner, max_size=5), max_leaves=15
)


def reads_or_refuses(read: Any) -> None:
    """The whole contract: a result, or one of captune's own errors that says something."""
    try:
        read()
    except CaptuneError as error:
        message = str(error)
        assert message.endswith((".", "!", "?", ")")) or error.next_step is not None
        message.encode("utf-8", "surrogatepass")


as_yaml = st.builds(lambda value: yaml.safe_dump(value, allow_unicode=True).encode(), values)
texts = st.builds(
    lambda text: text.encode(), st.text(st.sampled_from("ab:-[]{}#&*!|>'\"%@`,? \t\n0e.~\\"), max_size=60)
)


@seed(SEED)
@fuzzed
@given(content=st.binary(max_size=60) | texts | as_yaml, suffix=st.sampled_from([".yaml", ".txt", ".json", ""]))
def test_files_of_class_names(folder: Path, content: bytes, suffix: str) -> None:
    file = folder / f"names{suffix}"
    file.write_bytes(content)
    reads_or_refuses(lambda: read_class_names(str(file)))


rows = st.lists(st.lists(words, min_size=1, max_size=4), max_size=8)
separators = st.sampled_from([",", ";", "\t"])
headers = st.sampled_from([["path", "label", "split"], ["image", "label"], ["Label", "PATH"], ["x"], []])
encodings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"])


@seed(SEED)
@fuzzed
@given(
    header=headers, rows=rows, separator=separators, encoding=encodings, raw=st.binary(max_size=40), end=st.booleans()
)
def test_manifests(
    folder: Path, header: list[str], rows: list[list[str]], separator: str, encoding: str, raw: bytes, end: bool
) -> None:
    text = "\n".join(separator.join(row) for row in [header, *rows])
    file = folder / "list.csv"
    file.write_bytes(text.encode(encoding, "replace") + (raw if end else b""))
    task = TaskConfig.parse({"dataset": f"csv:{file}", "paradigm": "ul", "cache_dir": str(folder / "cache")})
    reads_or_refuses(lambda: load_dataset(task))


items = st.lists(st.tuples(words, scalars, words) | st.lists(scalars, max_size=4), max_size=5)


@seed(SEED)
@fuzzed
@given(
    splits=st.dictionaries(st.sampled_from(["train", "val", "test", "x"]), items | values, max_size=4),
    cut=st.integers(0, 8),
)
def test_split_files(folder: Path, splits: dict[str, Any], cut: int) -> None:
    file = folder / "split.json"
    text = json.dumps(splits)
    file.write_text(text[: len(text) - cut if cut < 3 else None])
    reads_or_refuses(lambda: read_coop_split(file, folder))


entries = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["float", "int", "categorical", "x"]) | scalars,
        "low": scalars, "high": scalars, "log": scalars, "step": scalars, "choices": values, "role": words, "value": values,
        "unit": st.sampled_from(["budget", "x"]), "max": st.sampled_from(["class_size", "x"]),
    },
)  # fmt: skip
fields = st.sampled_from(
    ["learning_rate", "epochs", "batch_size", "margin_scale", "prompts", "momentum", "no_such_field"]
)
spaces = st.fixed_dictionaries({}, optional={"method": words, "parameters": st.dictionaries(fields, entries | values)})


@seed(SEED)
@fuzzed
@given(content=spaces | values, raw=st.none() | texts)
def test_search_spaces(folder: Path, content: Any, raw: bytes | None) -> None:
    file = folder / "space.yaml"
    file.write_bytes(yaml.safe_dump(content, allow_unicode=True).encode() if raw is None else raw)
    base = method_named("cap").config_class()
    reads_or_refuses(lambda: load_space(file, base, class_size=10))


def line(value: Any) -> bytes:
    body = json.dumps(value).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


kinds = st.sampled_from(["planned", "started", "epoch", "finished", "failed", "chosen", "x"])
events = st.dictionaries(
    st.sampled_from(["event", "time", "key", "phase", "number", "config", "score"]) | words, values
)
typed = st.builds(lambda kind, event: {**event, "event": kind}, kinds, events)


@seed(SEED)
@fuzzed
@given(written=st.lists(typed | values, max_size=4), torn=st.binary(max_size=12))
def test_journals(folder: Path, written: list[Any], torn: bytes) -> None:
    file = folder / "journal.jsonl"
    file.write_bytes(b"".join(line(value) for value in written) + torn)
    reads_or_refuses(lambda: read_journal(file))
    reads_or_refuses(lambda: read_damaged_journal(file))
    reads_or_refuses(lambda: Journal(file).close())


dtypes = st.sampled_from(["<f4", "<f2", ">f8", "<i8", "|u1", "<U5", "|S3", "|b1", "<c8", "<M8[s]", "<u8", "|V3"])
shapes = st.sampled_from([(4, 2), (4,), (2, 2), (0, 2), (), (1,), (4, 0), (2,), (2, 3, 1)])
names = st.sampled_from(
    ["image_features", "labels", "split", "text_features", "class_names", "logit_scale", "template", "x"]
)
right: dict[str, Any] = {
    "image_features": np.ones((4, 2), np.float32), "labels": np.array([0, 1, 0, 1]), "class_names": np.array(["a", "b"]),
    "split": np.array(["train", "train", "test", "test"]),
}  # fmt: skip


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """A right file with some arrays exchanged, and perhaps some bytes too."""
    arrays = dict(right)
    for name in draw(st.lists(names, max_size=3)):
        shape, dtype = draw(shapes), np.dtype(draw(dtypes))
        size = int(np.prod(shape)) * dtype.itemsize
        arrays[name] = np.frombuffer(draw(st.binary(min_size=size, max_size=size)).ljust(1, b"\0")[: size or 1], np.uint8)[
            :size
        ].view(dtype).reshape(shape) if size else np.zeros(shape, dtype)  # fmt: skip
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = bytearray(buffer.getvalue())
    for place, byte in draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=3)):
        content[place] = byte
    return bytes(content[: len(content) - draw(st.sampled_from([0, 0, 0, 1, 30]))])


@seed(SEED)
@fuzzed
@given(content=archives())
def test_feature_files(folder: Path, content: bytes) -> None:
    file = folder / "f.npz"
    file.write_bytes(content)
    reads_or_refuses(lambda: read_feature_file(file, "features:f.npz", "a photo of a {}."))


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


tensors = st.sampled_from([torch.zeros(2), torch.full((2,), float("nan")), torch.zeros(1).expand(9), torch.tensor(4.6)])
states = st.dictionaries(
    st.sampled_from(
        ["logit_scale", "module.logit_scale", "clip.logit_scale", "text_model.x", "a.lora_A", "prompt", "w"]
    )
    | words,
    tensors | st.integers() | st.none() | words,
)
wrapped = st.recursive(
    states, lambda inner: st.dictionaries(st.sampled_from(["state_dict", "model", "net", "x"]), inner, max_size=2)
)


@seed(SEED)
@fuzzed
@given(state=wrapped, changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=2))
def test_weight_files(folder: Path, state: Any, changes: list[tuple[int, int]]) -> None:
    content = bytearray(saved(state))
    for place, byte in changes:
        content[place % len(content)] = byte
    file = folder / "w.pt"
    file.write_bytes(content)
    reads_or_refuses(lambda: read_weights(file))


@seed(SEED)
@fuzzed
@given(pickle=st.binary(max_size=60) | st.lists(st.sampled_from(
    [b"\x80\x02", b"c__torch__\nM\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b")", b"(", b"t",
     b"R", b"b", b"\x81", b"}", b"]", b"u", b"s", b"a", b"e", b"Q", b"q\x00", b"h\x00", b"K\x01", b"N", b"X\x01\x00\x00\x00w",
     b"X\x07\x00\x00\x00storage", b"X\x01\x00\x00\x000", b"J\xff\xff\xff\xff", b"."]
), max_size=30).map(lambda parts: b"\x80\x02" + b"".join(parts) + b"."))  # fmt: skip
def test_torchscript_archives(folder: Path, pickle: bytes) -> None:
    file = folder / "t.pt"
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {"data.pkl": pickle, "constants.pkl": b"\x80\x02).", "data/0": bytes(8)}.items():
            archive.writestr(f"t/{name}", content)
    reads_or_refuses(lambda: read_weights(file))


def pictures() -> list[bytes]:
    """A small picture in every format and mode that captune reads."""
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {"exif": turned}), (rgb, "JPEG", {"progressive": True}), (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "PNG", {}), (rgb.convert("P"), "PNG", {}), (rgb.convert("RGBA"), "PNG", {}), (rgb.convert("1"), "PNG", {}),
        (rgb.convert("I;16"), "PNG", {}), (rgb, "TIFF", {}), (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgb.convert("F"), "TIFF", {}), (rgb.convert("I"), "TIFF", {}), (rgb, "GIF", {}), (rgb, "BMP", {}),
        (rgb, "WEBP", {}), (rgb, "AVIF", {}), (rgb, "JPEG2000", {}), (rgb, "PPM", {}),
        (rgb, "MPO", {"save_all": True, "append_images": [rgb]}),
    ]  # fmt: skip
    files = []
    for image, kind, options in kinds:
        file = io.BytesIO()
        image.save(file, kind, **options)
        files.append(file.getvalue())
    return files


changes_of_bytes = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "put"]), st.integers(0, 120) | st.integers(0, 4000), st.binary(max_size=6)),
    min_size=1, max_size=6,
)  # fmt: skip


@seed(SEED)
@fuzzed
@given(content=st.sampled_from(pictures()), changes=changes_of_bytes, reading=st.sampled_from(["viewer", "open_clip"]))
def test_image_files(folder: Path, content: bytes, changes: list[tuple[str, int, bytes]], reading: Any) -> None:
    damaged = bytearray(content)
    for kind, place, new in changes:
        start = place % max(1, len(damaged))
        end = start if kind == "put" else start + len(new)
        damaged[start:end] = b"" if kind == "cut" else new
    file = folder / "image.jpg"
    file.write_bytes(damaged)
    try:
        pixels = decode_file(file, Preprocessing(16, (0.5,) * 3, (0.5,) * 3), reading)  # type: ignore[arg-type]
    except Unreadable as reason:
        assert str(reason)
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and min(pixels.shape[:2]) == 16
