"""A YAML file as plain values, with the line and column of each.

Nodes are composed, not loaded: their marks locate errors, and duplicate keys, which a plain load drops, are seen.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml

_MAX_BYTES = 100_000  # PyYAML takes a second or two for as much
_MAX_ERRORS = 100
_MAX_MESSAGE = 1_000
_COLLECTIONS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}

Position = tuple[str, ...]  # where in the file: ("factors", "attention", "feat8")


class StudyError(ValueError):
    """Everything that is wrong with a study file and its overrides, one message a line."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


class Document:
    """The file as plain values, with the position of every key and value by path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._errors: list[tuple[int, int, str]] = []
        self._keys: dict[Position, yaml.Mark] = {}
        self._values: dict[Position, yaml.Mark] = {}
        self._visited: set[int] = set()
        self.text = self._read()
        root = self._compose()
        self.content = self._plain(root, ())
        if not isinstance(self.content, dict):
            raise self._fatal(root.start_mark, "must be a mapping of fields to values; see studies/smoke.yaml")

    def errors(self) -> list[str]:
        """Every mistake noted so far, in the order of the file."""
        return [message for _, _, message in sorted(self._errors)]

    def error(self, path: Position, message: str, at: Literal["key", "value"] = "value") -> None:
        """Notes a mistake. A path that is not in the file is located at the nearest parent that is."""
        marks = (self._keys, self._values) if at == "key" else (self._values, self._keys)
        known = next(path[:end] for end in range(len(path), -1, -1) if path[:end] in self._values)
        mark = marks[0].get(known) or marks[1][known]
        self._note(mark, f"{'.'.join(path)}: {message}")

    def _note(self, mark: yaml.Mark | None, message: str) -> None:
        self._errors.append(self._located(mark, message))
        if len(self._errors) == _MAX_ERRORS:
            raise self._fatal(mark, f"{_MAX_ERRORS} mistakes; the rest of the file is not looked at")

    def _fatal(self, mark: yaml.Mark | None, message: str) -> StudyError:
        self._errors.append(self._located(mark, message))
        return StudyError(self.errors())

    def _located(self, mark: yaml.Mark | None, message: str) -> tuple[int, int, str]:
        """Line, column, and the message as one line of a terminal: keys and values may hold anything."""
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        where = f"{self.path}:{line}:{column}" if mark else str(self.path)
        shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in message)
        if len(shown) > _MAX_MESSAGE:
            shown = f"{shown[: _MAX_MESSAGE // 2]} ... {shown[-_MAX_MESSAGE // 2 :]}"
        return line, column, f"{where}: {shown}"

    def _read(self) -> str:
        if self.path.is_dir():
            raise self._fatal(None, "is a folder; give a study file, such as studies/smoke.yaml")
        try:
            with self.path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
            if len(content) > _MAX_BYTES:
                raise self._fatal(None, f"is larger than {_MAX_BYTES} bytes; this is no study file")
            return content.decode("utf-8-sig")
        except FileNotFoundError:
            close = difflib.get_close_matches(self.path.name, [p.name for p in self.path.parent.glob("*.yaml")], n=1)
            hint = f"; did you mean {str(self.path.with_name(close[0]))!r}?" if close else "; check the path"
            raise self._fatal(None, f"no such file{hint}") from None
        except UnicodeDecodeError as error:
            raise self._fatal(None, f"is not UTF-8 text (byte {error.start}); give a YAML study file") from None
        except OSError as error:
            raise self._fatal(None, f"cannot be read: {error.strerror or error}; check the path") from None
        except ValueError:
            raise self._fatal(None, "is no file name; check the path") from None

    def _compose(self) -> yaml.Node:
        try:
            root = yaml.compose(self.text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            context = f" {error.context}" if error.context else ""
            raise self._fatal(error.problem_mark, f"not valid YAML{context}: {error.problem}; mend this line") from None
        except yaml.YAMLError as error:
            reason = str(error).splitlines()[0]
            raise self._fatal(None, f"is not a text file that YAML can hold ({reason}); give a study file") from None
        except RecursionError:
            raise self._fatal(None, "is nested too deeply for a study file") from None
        except (ValueError, OverflowError):  # PyYAML's, of an escape such as "\\U99999999"
            raise self._fatal(None, "holds an escape that is no character; write the character itself") from None
        if root is None:
            raise self._fatal(None, "is empty; see studies/smoke.yaml for what a study holds")
        return root

    def _plain(self, node: yaml.Node, path: Position) -> Any:
        self._values[path] = node.start_mark
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in _COLLECTIONS:
            name = ".".join(path) or "the study"
            self._note(node.start_mark, f"{name}: tags are not read, got {node.tag!r}; drop it")
        if id(node) in self._visited:
            raise self._fatal(node.start_mark, f"{'.'.join(path)}: anchors and aliases are not read; write it out")
        self._visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, (*path, str(index))) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.MappingNode)
        return self._mapping(node, path)

    def _scalar(self, node: yaml.ScalarNode, path: Position) -> Any:
        try:
            value = yaml.SafeLoader("").construct_object(node)
            repr(value)  # Python prints no whole number of more than 4,300 digits
            return value
        except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError):  # as for !!bool maybe
            self._note(node.start_mark, f"{'.'.join(path)}: cannot be read as a value, got {node.value!r}; quote it")
            return None

    def _mapping(self, node: yaml.MappingNode, path: Position) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value  # as written: YAML 1.1 reads the keys on and off as true and false
            if not isinstance(key_node, yaml.ScalarNode):
                name = ".".join(path) or "the study"
                self._note(key_node.start_mark, f"{name}: a key must be a text, got a collection")
            elif key in plain:
                first = self._keys[(*path, key)].line + 1
                self._note(
                    key_node.start_mark, f"{'.'.join((*path, key))}: stands on line {first} already; keep one of them"
                )
            else:
                self._keys[(*path, key)] = key_node.start_mark
                plain[key] = self._plain(value_node, (*path, key))
        return plain


def did_you_mean(value: object, options: Iterable[str]) -> str:
    return hint(value, options).removeprefix("; ") or f"choose from {', '.join(options)}"


def hint(value: object, options: Iterable[str]) -> str:
    """ "; did you mean 'grid'?", or nothing where no option is close."""
    close = difflib.get_close_matches(str(value), list(options), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
