"""Foreign pickles, interpreted without importing or calling anything that they name.

A pickle is a program that can call any function, and torch.load runs it. Here its instructions are followed
one by one: tensors and plain containers are rebuilt, and every other object or call becomes a
:class:`bbdm.files.records.Record`. Weights are read from the file at first use, so that an optimizer's
moments cost nothing.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, cast

from bbdm.files.records import Global, Record, Storage, StoredTensor, describe

# Bounds the memory that a pickle can take beside its texts: an instruction of one byte allocates at most some
# 220 bytes (an empty set). A large network with its optimizer has 200,000 instructions.
MAX_OPCODES = 1_000_000
MAX_NAME = 10_000  # characters or bytes of a key or a class's name: each use can compare all of them

# Globals of the standard library that honest files name. They are not imported either; any other name of the
# standard library is an error.
HARMLESS = {
    "_codecs": "encode",
    "argparse": "Namespace",
    "builtins": "bool bytearray bytes complex dict float frozenset getattr int list object range set slice str tuple "
    "type",
    "collections": "Counter OrderedDict defaultdict deque",
    "copyreg": "__newobj__ __newobj_ex__ _reconstructor",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "functools": "partial",
    "logging": "Logger getLogger",
    "operator": "attrgetter itemgetter",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "random": "Random",
    "re": "_compile",
    "types": "SimpleNamespace",
    "typing": "Any Dict Generic List Mapping Optional OrderedDict Sequence Tuple Union",
    "uuid": "UUID",
}


@contextmanager
def damage(what: str) -> Iterator[None]:
    """Turns any error of reading ``what`` into a ValueError."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # a damaged archive or pickle can raise any error
        raise ValueError(f"{what} is damaged: {type(error).__name__} {error}") from error


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    """_rebuild_tensor and _rebuild_tensor_v2 of torch._utils, within the bounds of the storage."""
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError("its pickle has a tensor without storage, size or stride")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > 16 or any(type(n) is not int or not 0 <= n < 2**62 for n in numbers):
        raise ValueError("its pickle has a tensor of an impossible size or stride")
    if len(rest) > 2 and rest[2]:
        raise ValueError("its pickle has a tensor that is conjugated or negated in place")
    numel = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if numel and (last >= storage.numel or numel > storage.numel):
        raise ValueError(f"its pickle has a tensor of {numel} numbers that ends at {last}, in {storage.numel} numbers")
    return StoredTensor(storage, offset, size, stride)


def _key(value: Any, within: bool = False) -> Any:
    """A key or a member of a set, checked to be quick to hash and compare, unlike long or nested ones."""
    match value:
        case None | bool() | float() | Global() | Record() | StoredTensor():
            return value
        case int() if value.bit_length() <= 64:
            return value
        case str() | bytes() if len(value) <= MAX_NAME:
            return value
        case tuple() if not within and len(value) <= 16:
            return tuple(_key(part, within=True) for part in value)
    raise ValueError(f"its pickle has {describe(value)} as a key that is long, nested or no key at all")


# None of these copies its arguments: otherwise a short pickle could copy one long list many times.
REBUILT: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda function, kind, args, state: _call(function, args),
    "collections.OrderedDict": lambda *pairs: Record(Global("collections", "OrderedDict"), pairs) if pairs else {},
}


def _call(function: Any, args: Any) -> Any:
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise ValueError(f"its pickle calls {describe(function)}, not a function of a module")
    rebuild = REBUILT.get(str(function))
    return Record(function, args) if rebuild is None else rebuild(*args)


def _global(module: Any, name: Any) -> Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("its pickle asks for a global without a name")
    if len(module) > MAX_NAME or len(name) > MAX_NAME:
        raise ValueError("its pickle asks for a global of an impossible name")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))  # Python 2's
    found, package = Global(module, name), module.split(".")[0]
    if package in sys.stdlib_module_names and name not in HARMLESS.get(package, "").split():
        raise ValueError(f"it asks for the forbidden global {str(found)[:200]}")
    return found


PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}


class Machine:
    """Interprets one pickle. ``persistent(key, kind, numel)`` returns the storage of a persistent id."""

    def __init__(self, file: IO[bytes] | mmap.mmap, persistent: Callable[[str, Global, int], Storage]) -> None:
        self.file = cast(IO[bytes], file)
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The pickled object; ValueError where it is damaged, too long, or names a forbidden global."""
        with damage("its pickle"):
            for count, (opcode, argument, _) in enumerate(pickletools.genops(self.file)):
                if count >= MAX_OPCODES:
                    raise ValueError(f"its pickle is longer than {MAX_OPCODES} instructions")
                if opcode.name == "STOP":
                    break
                self._step(opcode.name, argument)
            return self.stack.pop()

    def _to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.below.append(stack)
                self.stack = []
            case "POP" if stack:
                stack.pop()
            case "POP" | "POP_MARK":
                self._to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(name[-1])
                if len(stack) < length:
                    raise IndexError("an empty stack")
                stack[-length:] = [tuple(stack[-length:])]
            case "TUPLE" | "LIST" | "DICT" | "FROZENSET":
                items = self._to_mark()
                build = {"TUPLE": tuple, "LIST": list, "DICT": _pairs, "FROZENSET": frozenset}[name]
                self.stack.append(build(map(_key, items) if name == "FROZENSET" else items))
            case "APPEND":
                _extend(stack[-2], [stack.pop()])
            case "APPENDS" | "ADDITEMS":
                items = self._to_mark()
                _extend(self.stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _update(stack[-1], [key, value])
            case "SETITEMS":
                items = self._to_mark()
                _update(self.stack[-1], items)
            case "GLOBAL":
                stack.append(_global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                qualified, module = stack.pop(), stack.pop()
                stack.append(_global(module, qualified))
            case "INST":
                items = self._to_mark()
                self.stack.append(_call(_global(*argument.split(" ", 1)), tuple(items)))
            case "OBJ":
                kind, *items = self._to_mark()
                self.stack.append(_call(kind, tuple(items)))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(_call(stack.pop(), arguments))
            case "NEWOBJ_EX":
                named, arguments = stack.pop(), stack.pop()
                stack.append(_call(stack.pop(), (arguments, named)))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Record):
                    stack[-1].state = state
                elif not isinstance(stack[-1], dict | StoredTensor):  # extra attributes of these are not needed
                    raise ValueError(f"its pickle sets the state of {describe(stack[-1])}")
            case "BINPERSID":
                stack.append(self._persistent(stack.pop()))
            case _ if name in PUSHED:
                stack.append(argument)
            case _ if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case _ if name in EMPTY:
                stack.append(EMPTY[name]())
            case _:
                raise ValueError(f"its pickle has the instruction {name}, which torch.save does not write")

    def _persistent(self, given: Any) -> Any:
        match given:
            case ("storage", Global() as kind, str() as key, _, int() as numel, *rest) if 0 <= numel < 2**62:
                if rest and rest[0] is not None:
                    raise ValueError("its pickle has a view of a storage, as PyTorch wrote before 1.0")
                if len(key) > 100:
                    raise ValueError("its pickle has a storage of an impossible name")
                storage = self.persistent(key, kind, numel)
                if (storage.kind.name, storage.numel) != (kind.name, numel):
                    raise ValueError(f"its storage {key} is of two types or sizes")
                return storage
            case ("module", Global() as kind, *_):  # of a class, with its source, before PyTorch 1.6
                return kind
        raise ValueError("its pickle refers to something outside it that is no storage")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _update(target: Any, items: list[Any]) -> None:
    """Sets items of a dict or of a mapping's record."""
    pairs = _pairs(items)
    if isinstance(target, dict):
        target.update(pairs)
    else:
        _extend(target, list(pairs.items()))


def _extend(target: Any, items: list[Any]) -> None:
    """Appends to a list, a set, or the record of one."""
    if isinstance(target, set):
        target.update(map(_key, items))
    elif isinstance(target, list | Record):
        (target if isinstance(target, list) else target.items).extend(items)
    else:
        raise ValueError(f"its pickle appends to {describe(target)}")
