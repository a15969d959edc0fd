"""TorchScript archives give their tensors, equal to what torch itself reads, and nothing in them is run."""

from __future__ import annotations

import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from captune.errors import ModelError
from captune.model.torchscript import is_torchscript, read_torchscript
from captune.model.weight_files import read_weights
from tests.model.torchscript_payload import Payload
from tests.slow import in_one_test


class _Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(12.0).reshape(3, 4).half())
        self.norm = nn.LayerNorm(4)
        self.mask = torch.ones(2)  # an attribute, which no state_dict holds

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x @ self.weight.float())


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _Inner()
        self.layers = nn.Sequential(nn.Linear(4, 4))
        self.tied = self.inner.weight
        self.transposed = nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.inner(x))


def saved(path: Path, make: Callable[[], torch.jit.ScriptModule]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(make(), str(path))
    return path


def by_torch(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(torch.jit.load(path, map_location="cpu").state_dict())


@pytest.mark.parametrize("form", ["traced", "scripted"])
def test_the_tensors_are_those_that_torch_reads(tmp_path: Path, form: str) -> None:
    def make() -> torch.jit.ScriptModule:
        model = _Model().eval()
        return torch.jit.trace(model, torch.zeros(2, 3)) if form == "traced" else torch.jit.script(model)

    path = saved(tmp_path / "model.pt", make)
    got, expected = read_torchscript(path), by_torch(path)
    assert list(got) == list(expected)
    assert {"tied", "transposed", "empty", "input_resolution", "inner.weight", "layers.0.bias"} < set(got)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name


def test_an_archive_that_writes_files_when_unpacked_is_not_run(tmp_path: Path) -> None:
    written = tmp_path / "written_by_the_archive"
    path = saved(tmp_path / "model.pt", lambda: torch.jit.script(Payload(str(written))))
    by_torch(path)
    assert written.exists(), "the attack itself must work, or this test shows nothing"
    written.unlink()
    with pytest.raises(ModelError, match="code of its own, which is never run"):
        read_weights(path)
    assert not written.exists()


def rewritten(path: Path, target: Path, change: dict[str, bytes]) -> Path:
    """The archive with some entries (by their names below the root) replaced."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for info in source.infolist():
            content = change.get(info.filename.split("/", 1)[1], source.read(info))
            copy.writestr(info.filename, content)
    return target


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return saved(tmp_path / "model.pt", lambda: torch.jit.trace(nn.Linear(2, 3), torch.zeros(1, 2)))


class _Reduce:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_an_archive_whose_pickle_calls_functions_is_not_run(tmp_path: Path, archive: Path, protocol: int) -> None:
    written = tmp_path / "written_by_the_pickle"
    attack = pickle.dumps(_Reduce(written), protocol=protocol)
    pickle.loads(attack)
    assert written.exists(), "the attack itself must work, or this test shows nothing"
    written.unlink()
    with pytest.raises(ModelError, match="a weight file must be whole and hold nothing but tensors"):
        read_weights(rewritten(archive, tmp_path / "attack.pt", {"data.pkl": attack}))
    assert not written.exists()


def test_build_and_setitem_reach_no_object_of_this_process(tmp_path: Path, archive: Path) -> None:
    # GLOBAL torch.Tensor, BUILD {"numel": 1}: in a real unpickler this changes the class itself.
    attack = b"\x80\x02ctorch\nTensor\n}X\x05\x00\x00\x00numelK\x01sb."
    pickletools.dis(attack, out=(tmp_path / "listing").open("w"))
    with pytest.raises(ModelError, match="takes a _Global for a Record"):
        read_weights(rewritten(archive, tmp_path / "attack.pt", {"data.pkl": attack}))
    assert callable(torch.Tensor.numel)


def storage_pickle(numel: int, size: bytes, stride: bytes, offset: bytes = b"K\x00", key: bytes = b"0") -> bytes:
    """A module with one parameter `w` over storage `key`, as TorchScript writes it."""
    persistent = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        + b"X" + struct.pack("<I", len(key)) + key
        + b"X\x03\x00\x00\x00cpu" + b"\x8a\x08" + struct.pack("<q", numel) + b"tQ"
    )  # fmt: skip
    return (
        b"\x80\x02c__torch__\nM\n)\x81}(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
        + persistent + offset + size + stride + b"\x89ccollections\nOrderedDict\n)RtRub."
    )  # fmt: skip


@in_one_test(
    ("attack", "says"),
    [
        (storage_pickle(6, b"(K\x02K\x03t", b"(K\x03K\x01t"), None),
        (storage_pickle(6, b"(K\x02K\x04t", b"(K\x03K\x01t"), "in a storage of 6 numbers"),
        (storage_pickle(6, b"(K\x02K\x03t", b"(K\x03K\x01t", offset=b"K\x01"), "in a storage of 6 numbers"),
        (storage_pickle(6, b"(J\xff\xff\xff\x7ft", b"(K\x00t"), "in a storage of 6 numbers"),
        (storage_pickle(6, b"(J\xff\xff\xff\xfft", b"(K\x01t"), "a tensor of shape"),
        (storage_pickle(1 << 60, b"(K\x02t", b"(K\x01t"), "must be 4611686018427387904 bytes, but is 24"),
        (storage_pickle(6, b"(K\x02t", b"(K\x01t", key=b"../constants.pkl"), "must lie uncompressed in the archive"),
        (b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00mh\x00sb.", "holds itself"),
        (b"\x80\x02", "damaged|exhausted|no end"),
        (b"\x80\x02R.", "damaged at REDUCE"),
        (b"not a pickle", "(?s).+"),
        (b"\x80\x02J\xff", "(?s).+"),
        (b"", "(?s).+"),
    ],
)
def test_sizes_and_references_that_lie_are_refused(
    tmp_path: Path, archive: Path, attack: bytes, says: str | None
) -> None:
    change = {"data.pkl": attack, "data/0": struct.pack("<6f", *range(6))}
    path = rewritten(archive, tmp_path / "attack.pt", change)
    assert is_torchscript(path)
    if says is None:
        assert torch.equal(read_weights(path).state["w"], torch.arange(6.0).reshape(2, 3))
        return
    with pytest.raises(ModelError, match=says):
        read_weights(path)


def test_a_pickle_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path, archive: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as copy:
        for info in source.infolist():
            bomb = info.filename.endswith("/data.pkl")
            copy.writestr(info.filename, b"\x80\x02" + b"N" * (64 << 20) if bomb else source.read(info))
    with pytest.raises(ModelError, match=r"data\.pkl is larger than"):
        read_weights(path)
