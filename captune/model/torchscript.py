"""The tensors of a TorchScript archive (the form of OpenAI's release), read without running anything in it.

`torch.jit.load` runs what an archive brings along: a class's `__setstate__` is code of whoever made the file. Here the
archive's pickle is read opcode by opcode: every class becomes a plain record of its name and its attributes, and the
only thing that is ever built is a tensor over bytes of the archive itself.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_MEGABYTE = 1 << 20
_PICKLE_BYTES = 8 * _MEGABYTE  # the pickle of a thousand tensors takes less than one megabyte
_CODE_BYTES = 4 * _MEGABYTE
_MAX_MODULES = 100_000
_MAX_DEPTH = 100
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_CLASS = re.compile(
    r"^class (?P<name>\w+)\(Module\):"
    r"\s*__parameters__ = \[(?P<parameters>[^\]]*)\]\s*__buffers__ = \[(?P<buffers>[^\]]*)\]",
    re.MULTILINE,
)


@dataclass(frozen=True)
class _Global:
    """The name of a class or function, which is never looked up."""

    name: str


@dataclass(eq=False)
class _Record:
    """An object of the archive: the name of its class and whatever state the pickle gives it."""

    name: str
    state: Any = None


@dataclass(frozen=True)
class _Storage:
    """Bytes of the archive that tensors lie in."""

    key: str
    dtype: torch.dtype
    numel: int


class _Mark:
    """Where a tuple, list or dict begins on the stack."""


def is_torchscript(path: Path) -> bool:
    """Whether the file is a zip archive of TorchScript's form."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(Path(entry).name == "constants.pkl" for entry in archive.namelist())
    except Exception:  # not an archive, or so damaged that torch's own reader should say what is wrong
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by their names in the module tree, on the CPU.

    Nothing of the archive is executed: no class is imported, no `__setstate__`, `__reduce__` or method is called.

    Raises:
        ValueError: the archive is damaged, holds opcodes or calls beyond plain modules and tensors, or a module that
            unpacks itself by its own code.
    """
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        roots = [
            name.removesuffix("data.pkl") for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(roots) != 1:
            raise ValueError(f"a TorchScript archive holds one data.pkl, this one {len(roots)}")
        reader = _Archive(archive, entries, roots[0], path.stat().st_size)
        if reader.small("byteorder", 16, default=b"little").strip() != b"little":
            raise ValueError("its numbers are stored big-endian")
        root = _unpickle(reader.small("data.pkl", _PICKLE_BYTES), reader.tensor)
        if not _is_module(root):
            raise ValueError("its data.pkl holds no module")
        return dict(_flatten(root, reader, "", ()))


class _Archive:
    """The entries of the archive that are read: the pickle, storages, and classes' lists of parameters."""

    def __init__(
        self, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], root: str, file_bytes: int
    ) -> None:
        self._archive, self._entries, self._root, self._file_bytes = archive, entries, root, file_bytes
        self._storages: dict[str, Tensor] = {}
        self._declared: dict[str, dict[str, frozenset[str]]] = {}
        self.num_modules = 0

    def small(self, name: str, limit: int, default: bytes | None = None) -> bytes:
        """An entry of at most `limit` bytes, by what is read and not by what is declared."""
        info = self._entries.get(self._root + name)
        if info is None:
            if default is None:
                raise ValueError(f"it has no {name}")
            return default
        with self._archive.open(info) as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"its {name} is larger than {limit} bytes")
        return content

    def tensor(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        """A view of a storage, all of whose elements lie within it."""
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"a tensor of shape {size} with strides {stride} at {offset}")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        count = math.prod(size)
        if count > storage.numel or (count and last >= storage.numel):
            raise ValueError(f"a tensor of shape {size} in a storage of {storage.numel} numbers")
        return torch.as_strided(self._storage(storage), size, stride, offset)

    def _storage(self, storage: _Storage) -> Tensor:
        if storage.key not in self._storages:
            info = self._entries.get(f"{self._root}data/{storage.key}")
            wanted = storage.numel * storage.dtype.itemsize
            if info is None or info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its storage {storage.key} must lie uncompressed in the archive")
            if not wanted == info.file_size == info.compress_size or wanted > self._file_bytes:
                raise ValueError(f"its storage {storage.key} must be {wanted} bytes, but is {info.file_size}")
            content = bytearray(self._archive.read(info))
            if len(content) != wanted:
                raise ValueError(f"its storage {storage.key} is cut short")
            flat = torch.frombuffer(content, dtype=storage.dtype) if wanted else torch.empty(0, dtype=storage.dtype)
            self._storages[storage.key] = flat
        flat = self._storages[storage.key]
        if flat.dtype != storage.dtype or flat.numel() != storage.numel:
            raise ValueError(f"its storage {storage.key} is named twice, as different things")
        return flat

    def declared(self, class_name: str) -> frozenset[str] | None:
        """Parameters and buffers that the class's text declares, or None where it has no such text.

        A module may hold other tensors, such as OpenAI's attention mask; they belong to no state_dict.
        """
        module, _, name = class_name.rpartition(".")
        if module not in self._declared:
            text = self.small(f"code/{module.replace('.', '/')}.py", _CODE_BYTES, default=b"").decode(errors="replace")
            self._declared[module] = {
                found["name"]: frozenset(re.findall(r'"([^"]*)"', found["parameters"] + found["buffers"]))
                for found in _CLASS.finditer(text)
            }
        return self._declared[module].get(name)


def _is_module(value: object) -> bool:
    return isinstance(value, _Record) and value.name.startswith("__torch__.")


def _flatten(
    module: _Record, archive: _Archive, prefix: str, above: tuple[_Record, ...]
) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(module.state, dict):
        raise ValueError(f"{prefix or module.name} would be unpacked by code of its own, which is never run")
    if module in above or len(above) > _MAX_DEPTH:
        raise ValueError(f"{prefix or module.name} holds itself")
    archive.num_modules += 1
    if archive.num_modules > _MAX_MODULES:
        raise ValueError(f"it has more than {_MAX_MODULES} modules")
    declared = archive.declared(module.name)
    for name, value in module.state.items():
        if isinstance(value, Tensor) and (declared is None or name in declared):
            yield f"{prefix}{name}", value
        elif _is_module(value):
            yield from _flatten(value, archive, f"{prefix}{name}.", (*above, module))


_BuildTensor = Callable[[_Storage, int, tuple[int, ...], tuple[int, ...]], Tensor]


def _unpickle(content: bytes, build_tensor: _BuildTensor) -> Any:
    """What the pickle describes, of dicts, lists, tuples, plain values, records and tensors."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        try:
            _step(name, argument, stack, memo, build_tensor)
        except (IndexError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"its pickle is damaged at {name}: {error!r}") from None
    raise ValueError("its pickle has no end")


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "MARK": _Mark,
}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any], build_tensor: _BuildTensor) -> None:
    if name in _CONSTANTS:
        stack.append(_CONSTANTS[name]())
    elif name in _VALUES:
        stack.append(argument)
    elif name == "GLOBAL":
        stack.append(_Global(argument.replace(" ", ".")))
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name in _TUPLES:
        stack.append(tuple([stack.pop() for _ in range(_TUPLES[name])][::-1]))
    elif name in ("APPEND", "APPENDS"):
        values = _since_mark(stack) if name == "APPENDS" else [stack.pop()]
        _of_type(stack[-1], list).extend(values)
    elif name in ("SETITEM", "SETITEMS"):
        values = _since_mark(stack) if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
        _of_type(stack[-1], dict).update(zip(values[::2], values[1::2], strict=True))
    elif name == "BINPERSID":
        stack.append(_storage_of(stack.pop()))
    elif name == "NEWOBJ":
        stack.pop()
        stack.append(_Record(_of_type(stack.pop(), _Global).name))
    elif name == "REDUCE":
        arguments = _of_type(stack.pop(), tuple)
        stack.append(_reduced(_of_type(stack.pop(), _Global).name, arguments, build_tensor))
    elif name == "BUILD":
        state = stack.pop()
        _of_type(stack[-1], _Record).state = state
    elif name != "PROTO":
        raise ValueError(f"its pickle uses {name}, which no TorchScript archive needs")


def _since_mark(stack: list[Any]) -> list[Any]:
    values: list[Any] = []
    while not isinstance(value := stack.pop(), _Mark):
        values.append(value)
    return values[::-1]


def _of_type(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"its pickle takes a {type(value).__name__} for a {kind.__name__.lstrip('_')}")
    return value


def _storage_of(identity: Any) -> _Storage:
    word, kind, key, _, numel = _of_type(identity, tuple)
    dtype = _DTYPES.get(_of_type(kind, _Global).name.removeprefix("torch."))
    if word != "storage" or dtype is None or not isinstance(key, str) or type(numel) is not int or numel < 0:
        raise ValueError(f"its pickle names a storage that is none: {kind.name} {key!r}")
    return _Storage(key, dtype, numel)


def _reduced(name: str, arguments: tuple[Any, ...], build_tensor: _BuildTensor) -> Any:
    if name == "torch._utils._rebuild_tensor_v2":
        storage, offset, size, stride = arguments[:4]
        return build_tensor(_of_type(storage, _Storage), offset, _of_type(size, tuple), _of_type(stride, tuple))
    if name == "torch._utils._rebuild_parameter" or (
        name.startswith("torch.jit._pickle.") and arguments and isinstance(arguments[0], (list, dict, Tensor))
    ):
        return arguments[0]  # a container or parameter with a note of its type
    if name == "collections.OrderedDict":
        return {}
    return _Record(name, arguments)
