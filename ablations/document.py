"""A study file's text (YAML 1.2) as plain values, with the line and column of each, and what is wrong with them.

The text is parsed to nodes, which have positions and keep duplicate keys, instead of being loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import StringMark, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

_MAX_BYTES = 100_000  # the longest study here has 2,000
_MAX_MESSAGE = 1_000
# Raised by ruamel.yaml for values that contradict their tag (!!bool maybe), and by Python for too many digits.
_UNREADABLE = (YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError)

Position = tuple[str, ...]  # of a value: ("factors", "attention", "feat8")
Place = tuple[int, int]  # line and column, from 1; (0, 0) for no place in the file


class StudyError(ValueError):
    """Everything that is wrong with a study file and its overrides, one message per line."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


class Document:
    """`content` is the file as plain values. Raises StudyError where it is no YAML mapping, or cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._errors: list[tuple[Place, str]] = []
        self._keys: dict[Position, Place] = {}
        self._values: dict[Position, Place] = {}
        self._yaml = _yaml()
        self.text = self._read()
        try:
            root = self._yaml.compose(self.text)
        except (*_UNREADABLE, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            place = _place(mark) if mark else (0, 0)
            raise self._fatal(f"not valid YAML: {_problem(error)}; correct it", place) from None
        if not isinstance(root, Node):
            raise self._fatal("is empty; see studies/smoke.yaml for what a study holds")
        self.content = self._plain(root, (), _place(root.start_mark))
        if not isinstance(self.content, dict):
            raise self._fatal("must be a mapping of fields to values; see studies/smoke.yaml", self._values[()])

    def errors(self) -> list[str]:
        """All messages so far: those of options, then those of the file in its order."""
        return [message for _, message in sorted(self._errors, key=lambda error: error[0])]

    def error(self, position: Position, message: str, at: Literal["key", "value"] = "value") -> None:
        """Add a mistake at a position in the file, or else at its nearest parent, or of an option: ("--set", "x")."""
        if position[0].startswith("--") and position[:1] not in self._values:
            self._errors.append(((0, 0), f"{' '.join(position)}: {message}"))
            return
        known = next(position[:end] for end in range(len(position), -1, -1) if position[:end] in self._values)
        place = self._keys.get(known, self._values[known]) if at == "key" else self._values[known]
        self._note(f"{_name(position)}: {message}", place)

    def _note(self, message: str, place: Place) -> None:
        where = f"{self.path}:{place[0]}:{place[1]}" if place[0] else str(self.path)
        # Keys and values may contain line ends and control characters.
        shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in message)
        if len(shown) > _MAX_MESSAGE:
            shown = f"{shown[: _MAX_MESSAGE // 2]} ... {shown[-_MAX_MESSAGE // 2 :]}"
        self._errors.append((place, f"{where}: {shown}"))

    def _fatal(self, message: str, place: Place = (0, 0)) -> StudyError:
        self._note(message, place)
        return StudyError(self.errors())

    def _read(self) -> str:
        try:
            with self.path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
            if len(content) > _MAX_BYTES:
                raise self._fatal(f"is larger than {_MAX_BYTES} bytes; this is no study file")
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self._fatal(f"is not UTF-8 text (byte {error.start}); give a YAML study file") from None
        except OSError as error:
            close = hint(self.path.name, [path.name for path in self.path.parent.glob("*.yaml")])
            reason = (error.strerror or str(error)).lower()
            raise self._fatal(f"{reason}{close or '; give a study file, such as studies/smoke.yaml'}") from None

    def _plain(self, node: Node, position: Position, place: Place) -> Any:
        """The node as plain values; the place of each is stored."""
        self._values[position] = place
        name = _name(position)
        if node.anchor is not None:
            raise self._fatal(f"{name}: anchors and aliases are not supported; write the value out", place)
        if isinstance(node, SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            items = enumerate(node.value)
            return [self._plain(item, (*position, str(index)), _place(item.start_mark)) for index, item in items]
        if isinstance(node, MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, position)
        if not isinstance(node, ScalarNode):
            raise self._fatal(f"{name}: tags are not supported, got {node.tag!r}; drop it", place)
        try:
            value = self._yaml.constructor.construct_object(node)
            repr(value)  # fails for whole numbers of more than 4,300 digits, which no message could show
            return value
        except _UNREADABLE:
            raise self._fatal(f"{name}: cannot be read as a value, got {node.value!r}; quote it", place) from None

    def _mapping(self, node: MappingNode, position: Position) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, place = key_node.value, _place(key_node.start_mark)  # as text: a level may be called 1 or true
            inner = (*position, key)
            if not isinstance(key_node, ScalarNode):
                self._note(f"{_name(position)}: a key must be a text, got a collection; write a text", place)
            elif key in plain:
                self._note(f"{_name(inner)}: is on line {self._keys[inner][0]} already; keep one of them", place)
            else:
                self._keys[inner] = place
                empty = value_node.value == "" and value_node.start_mark.index == value_node.end_mark.index
                # For an empty value ruamel.yaml gives the place of the next token; report the one after the colon.
                start = _place(key_node.end_mark, 1) if empty else _place(value_node.start_mark)
                plain[key] = self._plain(value_node, inner, start)
        return plain


def _name(position: Position) -> str:
    return ".".join(part or "''" for part in position) or "the study"


def _place(mark: StringMark, columns: int = 0) -> Place:
    return mark.line + 1, mark.column + 1 + columns


def read_value(text: str) -> Any:
    """The value of YAML text, as in a study file ("1e-4" is a number). Raises ValueError for text that is not YAML."""
    try:
        value = _yaml().load(text) if text else ""
        repr(value)
        return value
    except (*_UNREADABLE, RecursionError) as error:
        raise ValueError(f"not valid YAML: {_problem(error)}, got {text!r}; quote a text") from None


def _problem(error: Exception) -> str:
    """The reason in one line, without the excerpt that ruamel.yaml adds."""
    parts = (getattr(error, "context", None), getattr(error, "problem", None))
    return ": ".join(filter(None, parts)) or (str(error) or repr(error)).splitlines()[0]


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)  # pure: the parser in C implements YAML 1.1


def did_you_mean(value: object, options: Iterable[str]) -> str:
    """ "did you mean 'grid'?", or all options where none is close."""
    return hint(value, options).removeprefix("; ") or f"choose from {', '.join(options)}"


def hint(value: object, options: Iterable[str]) -> str:
    """ "; did you mean 'grid'?", or nothing where no option is close."""
    close = difflib.get_close_matches(str(value), list(options), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
