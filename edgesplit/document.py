"""A YAML file -> a Value, or every mistake in it at once: file, line, column, key, what was expected, what was found.

YAML is read as people mean it: no tags, no dates, no octal or base-60 numbers; a number too large for 64 bits is text.
A kind with `DEFAULTS_OF = "hosts"` may hold a mapping `defaults` that it lays under every entry of `hosts` by itself;
a mistake that comes from there is reported there, and once.
Must not know: what any key means, nor anything beyond pydantic and yaml (an import of it must stay quick).
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import Reader

from edgesplit.errors import InputError
from edgesplit.values import Value

# A thousand hosts of twenty keys are 400 kB and 40 000 values; what is larger is a mistake or an attack.
MAX_BYTES = 1_000_000
MAX_VALUES = 50_000  # aliases written out: a few lines of them can stand for billions
MAX_DEPTH = 32

T = TypeVar("T", bound=Value)
Loc = tuple[str | int, ...]

_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
    **dict.fromkeys(("", "~", "null"), None),
}
_INT = re.compile(r"[-+]?(?:0|[1-9](?:_?[0-9]){0,17})")  # 18 digits fit into 64 bits
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLAIN_KEY = re.compile(r"[\w.-]{1,60}", re.ASCII)

# pydantic's kinds of error in our words; {name} is taken from the error's context. What is not here keeps its own text.
WORDS = {
    "bool_type": "expected true or false",
    "dict_type": "expected a mapping (key: value)",
    "float_type": "expected a number",
    "greater_than": "expected a number above {gt}",
    "greater_than_equal": "expected {ge} or more",
    "int_type": "expected a whole number",
    "less_than_equal": "expected {le} or less",
    "literal_error": "expected {expected}",
    "model_type": "expected a mapping (key: value)",
    "string_pattern_mismatch": "expected a name: at most 63 letters, digits, '.', '_' and '-', "
    "the first of them a letter or digit",
    "string_type": "expected text",
    "too_short": "expected {min_length} or more entries",
    "tuple_type": "expected a list",
    "value_error": "{error}",  # a validator of ours
}

# Part of yaml's message -> the same in our words, and what to do about it.
_PROBLEMS = {
    "'\\t'": ("a tab where only spaces may stand", "indent with spaces"),
    "another document": ("a second document begins here", "a file holds one document: remove the '---'"),
    "mapping values": ("a ':' that belongs to no key", "check the indentation, and quote text that contains ': '"),
    "block end": ("does not line up with what is above", "keys of one mapping begin in the same column"),
    "node content": ("a value is missing here", "close every bracket and quote, and give every key a value"),
    "undefined alias": ("an alias of nothing", "quote text that begins with '*'"),
}
_HINT = "the annotated inventory/example.yaml and plans/example.yaml show every key"


class _Place(NamedTuple):
    key: yaml.Mark  # where the key begins; for the root and for entries of a list: where the value begins
    node: Node


class _Mistake(NamedTuple):
    mark: yaml.Mark
    loc: Loc
    text: str

    @property
    def place(self) -> tuple[int, int]:
        return self.mark.line, self.mark.column

    def __str__(self) -> str:
        steps = (f"[{step}]" if isinstance(step, int) else f".{_plain(step)}" for step in self.loc)
        path = "".join(steps).removeprefix(".")
        return f"{_at(self.mark)}: {path}{': ' if path else ''}{self.text}"


class Foreign(Protocol):
    """A file of another tool, read: `data` is what a file of ours would say.

    `origins`: place in `data` -> place in the file. `mistakes`: place in the file, and what is wrong there.
    """

    data: dict[str, Any]
    origins: dict[Loc, Loc]
    mistakes: list[tuple[Loc, str]]


def read(path: Path) -> dict[str, Any]:
    """What the file at `path` says, whatever it means. Raises InputError."""
    return _read(path)[0]


def load(path: Path, kind: type[T], foreign: Callable[[dict[str, Any]], Foreign | None] = lambda _: None) -> T:
    """The file at `path` as a value of `kind`; `foreign` may know it for a file of another tool.

    Raises InputError listing every mistake.
    """
    data, tree = _read(path)
    if (other := foreign(data)) is not None:
        data = other.data
        tree.settle(other)
    errors: list[ErrorDetails] = []
    try:
        value = kind.model_validate_json(json.dumps(data))
    except ValidationError as error:
        errors = error.errors(include_url=False)
    known = {mistake.place for mistake in tree.mistakes}
    mistakes = [_translate(error, tree.places, kind) for error in errors]
    mistakes = tree.mistakes + [tree.shown(mistake) for mistake in mistakes if mistake.place not in known]
    if not mistakes:
        return value
    lines = [f"{path}{mistake}" for mistake in sorted(mistakes, key=lambda mistake: mistake.place)]
    raise InputError("\n".join(dict.fromkeys(lines)), _HINT)


def _read(path: Path) -> tuple[dict[str, Any], _Tree]:
    tree = _Tree()
    try:
        return tree.read(_compose(_text(path))), tree
    except InputError as error:  # its message begins behind the path
        raise InputError(f"{path}{error.message}", error.hint) from error


def _at(mark: yaml.Mark | None) -> str:
    return f":{mark.line + 1}:{mark.column + 1}" if mark else ""


def _plain(text: str) -> str:
    return text if _PLAIN_KEY.fullmatch(text) else _shown(text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


# --- bytes -> text -> nodes


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f": {error.strerror}", "give the path of a YAML file that you may read") from error
    if len(raw) > MAX_BYTES:
        raise InputError(f": larger than {MAX_BYTES} bytes", "is this the right file?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f":{line}: not UTF-8 text", "save the file as UTF-8") from error
    if odd := Reader.NON_PRINTABLE.search(text):
        place = f":{text.count(chr(10), 0, odd.start()) + 1}:{odd.start() - text.rfind(chr(10), 0, odd.start())}"
        raise InputError(
            f"{place}: the character U+{ord(odd.group()):04X} is not allowed in YAML", "is this a text file?"
        )
    return text


class _Composer(yaml.SafeLoader):
    """Composes nodes within our limits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.values = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise InputError(f"{_at(event.start_mark)}: tags are not read here; remove {_shown(event.tag)}", _HINT)
        self.depth += 1
        self.values += 1
        _limit(self.depth, self.values, event.start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _limit(depth: int, values: int, mark: yaml.Mark) -> None:
    if depth > MAX_DEPTH:
        raise InputError(f"{_at(mark)}: nested deeper than {MAX_DEPTH} levels", _HINT)
    if values > MAX_VALUES:
        raise InputError(f"{_at(mark)}: more than {MAX_VALUES} values, aliases written out", _HINT)


def _compose(text: str) -> MappingNode:
    loader = _Composer(text)
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        known = (words for part, words in _PROBLEMS.items() if part in str(error.problem))
        text, hint = next(known, (str(error.problem), _HINT))
        raise InputError(f"{_at(error.problem_mark)}: not YAML: {text}", hint) from error
    except (ValueError, OverflowError) as error:  # yaml lets those of chr() and int() through
        text = "not YAML: an escape or version number out of range"
        raise InputError(f"{_at(loader.get_mark())}: {text}", _HINT) from error
    if node is None or (isinstance(node, ScalarNode) and _found(node) == "nothing"):
        raise InputError(": the file is empty", _HINT)
    if not isinstance(node, MappingNode):
        raise InputError(f"{_at(node.start_mark)}: expected a mapping (key: value), found {_found(node)}", _HINT)
    return node


# --- nodes -> plain data, remembering where each piece stands


class _Tree:
    """What `read` has seen: the place of every value by its key path, and the mistakes of the YAML itself."""

    def __init__(self) -> None:
        self.places: dict[Loc, _Place] = {}
        self.mistakes: list[_Mistake] = []
        self._values = 0
        self._origins: dict[Loc, Loc] = {}

    def settle(self, other: Foreign) -> None:
        """From now on, places are those of what a file of another tool was turned into."""
        self._origins = other.origins
        self.mistakes += [_Mistake(self.places[loc].key, loc, text) for loc, text in other.mistakes]
        self.places = {loc: self.places[origin] for loc, origin in other.origins.items()}

    def shown(self, mistake: _Mistake) -> _Mistake:
        """With the path that its place has in the file."""
        return mistake._replace(loc=self._origins.get(mistake.loc, mistake.loc))

    def read(self, node: Node, loc: Loc = (), key: yaml.Mark | None = None) -> Any:
        self._values += 1
        _limit(len(loc), self._values, key or node.start_mark)
        self.places[loc] = _Place(key or node.start_mark, node)
        if isinstance(node, ScalarNode):
            return self._legal(_scalar(node), loc, node)
        if isinstance(node, SequenceNode):
            return [self.read(value, (*loc, number)) for number, value in enumerate(node.value)]
        return {name: self.read(value, (*loc, name), at) for name, value, at in self._pairs(node, loc)}

    def _pairs(self, node: Node, loc: Loc) -> Iterator[tuple[str, Node, yaml.Mark]]:
        """Key, value and place of the key; of a key given twice, the first."""
        first: dict[str, yaml.Mark] = {}
        for key, value in node.value:
            self._values += 1
            if not isinstance(key, ScalarNode):
                self._say(key.start_mark, loc, f"expected text as key, found {_found(key)}")
                continue
            name = self._key(key, loc)
            if name in first:
                self._say(key.start_mark, (*loc, name), f"given twice, first on line {first[name].line + 1}")
            else:
                first[name] = key.start_mark
                yield name, value, key.start_mark

    def _key(self, key: ScalarNode, loc: Loc) -> str:
        name = str(self._legal(key.value, loc, key))
        if not isinstance(_scalar(key), str):
            self._say(key.start_mark, (*loc, name), f'expected text as key, found {_found(key)}; quote it: "{name}"')
        if name == "<<" and key.style is None:
            self._say(key.start_mark, (*loc, name), "merge keys are not read here; write the keys out")
        return name

    def _legal(self, value: Any, loc: Loc, node: Node) -> Any:
        if not isinstance(value, str) or not _SURROGATE.search(value):
            return value
        self._say(node.start_mark, loc, "half a surrogate pair is no character; write \\U and eight digits")
        return _SURROGATE.sub("?", value)

    def _say(self, mark: yaml.Mark, loc: Loc, text: str) -> None:
        self.mistakes.append(_Mistake(mark, loc, text))


def _scalar(node: ScalarNode) -> str | int | float | bool | None:
    text = str(node.value)
    if node.style is not None or len(text) > 60:  # quoted, or longer than any number
        return text
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def _found(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        return "a mapping" if isinstance(node, MappingNode) else "a list"
    value = _scalar(node)
    if isinstance(value, str):
        return _shown(value)
    return "nothing" if value is None else str(node.value)


# --- pydantic's errors -> mistakes


def _translate(error: ErrorDetails, places: dict[Loc, _Place], kind: type[Value]) -> _Mistake:
    loc = error["loc"]
    if error["type"] == "missing":
        return _Mistake(places[_written(loc, places)].key, loc, "required, but missing")
    if loc[-1:] == ("[key]",) and loc not in places:
        return _Mistake(places[loc[:-1]].key, loc[:-1], WORDS.get(error["type"], error["msg"]))
    loc = _origin(loc, places, kind)
    key, node = places[loc]
    if error["type"] == "extra_forbidden":
        return _Mistake(key, loc, _unknown_key(loc, node, kind))
    return _Mistake(node.start_mark if isinstance(node, ScalarNode) else key, loc, _wrong(error, node))


def _written(loc: Loc, places: dict[Loc, _Place]) -> Loc:
    """The longest part of `loc` that stands in the file."""
    while loc not in places:
        loc = loc[:-1]
    return loc


def _origin(loc: Loc, places: dict[Loc, _Place], kind: type[Value]) -> Loc:
    """Where the value at `loc` was written: there, or in the defaults laid under it."""
    here = _written(loc, places)
    if len(loc) < 3 or loc[0] != getattr(kind, "DEFAULTS_OF", None):
        return here
    there = _written(("defaults", *loc[2:]), places)
    left_empty = _found(places[here].node) == "nothing"
    return there if len(there) + 1 > len(here) - left_empty else here


def _unknown_key(loc: Loc, node: Node, kind: type[Value]) -> str:
    layered = getattr(kind, "DEFAULTS_OF", None)
    if layered and loc == ("defaults",):
        return f"expected a mapping (key: value), found {_found(node)}"
    if layered and loc[0] == "defaults":
        loc = (layered, "", *loc[1:])
    model: Any = kind
    for step in loc[:-1]:
        model = _step(model, step)
    known = [*_fields(model), *(["defaults"] if layered and len(loc) == 1 else [])]
    near = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return "unknown key; " + (f"did you mean {near[0]!r}?" if near else f"the keys here are {', '.join(known)}")


def _step(annotation: Any, key: str | int) -> Any:
    """The type of what stands under `key` in a value of this type: a kind, a mapping or a list."""
    if get_origin(annotation) in (dict, tuple):
        return get_args(annotation)[isinstance(key, str)]
    return _fields(annotation)[str(key)].annotation


def _fields(annotation: Any) -> dict[str, Any]:
    """The fields of a kind X, or of X | None."""
    return next(part.model_fields for part in (annotation, *get_args(annotation)) if hasattr(part, "model_fields"))


def worded(error: ErrorDetails) -> str:
    """What pydantic says is wrong, in our words."""
    return WORDS[error["type"]].format(**error.get("ctx", {})) if error["type"] in WORDS else error["msg"]


def _wrong(error: ErrorDetails, node: Node) -> str:
    """What was expected and what was found; for a word or an unquoted text, what was probably meant."""
    context = error.get("ctx", {})
    if error["type"] in ("value_error", "too_short"):
        text = worded(error)
        return f"{text}; found {_found(node)}" if isinstance(node, ScalarNode) else text
    text = f"{worded(error)}, found {_found(node)}"
    if error["type"] == "string_type" and isinstance(node, ScalarNode) and _scalar(node) is not None:
        return f'{text}; quote it: "{node.value}"'
    if error["type"] == "literal_error":
        near = difflib.get_close_matches(str(node.value), re.findall(r"'([^']*)'", context["expected"]), n=1)
        return text + (f"; did you mean {near[0]!r}?" if near else "")
    return text
