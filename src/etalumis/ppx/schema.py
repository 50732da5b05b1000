"""The tables of schema.fbs, read from the file itself so that every fact of the wire lives in one place."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import NamedTuple

_COMMENT = re.compile(r"//[^\n]*")
_DECLARATION = re.compile(r"(table|union|enum)\s+(\w+)\s*(?::\s*\w+\s*)?\{([^}]*)\}")
_FIELD = re.compile(r"(\w+)\s*:\s*(\[?\w+\]?)\s*(?:=\s*(\w+))?\s*;")


class Field(NamedTuple):
    """One field: its name, type, default, and its id in the vtable (a union's value takes the id after its tag's)."""

    name: str
    type: str
    default: str | None
    id: int


class Schema(NamedTuple):
    """What a .fbs file declares: fields of tables, members of unions (tags count from 1) and of enums (from 0)."""

    tables: dict[str, tuple[Field, ...]]
    unions: dict[str, tuple[str, ...]]
    enums: dict[str, tuple[str, ...]]


def parse(text: str) -> Schema:
    """Read the subset of the FlatBuffers language that PPX uses."""
    text = _COMMENT.sub("", text)
    declared = {(kind, name): body for kind, name, body in _DECLARATION.findall(text)}
    unions = {name: _members(body) for (kind, name), body in declared.items() if kind == "union"}
    enums = {name: _members(body) for (kind, name), body in declared.items() if kind == "enum"}
    tables = {}
    for (kind, name), body in declared.items():
        if kind != "table":
            continue
        fields, following = [], 0
        for label, type_, default in _FIELD.findall(body):
            following += type_ in unions
            fields.append(Field(label, type_, default or None, following))
            following += 1
        tables[name] = tuple(fields)
    return Schema(tables, unions, enums)


@cache
def schema() -> Schema:
    """The schema of PPX."""
    return parse(resources.files(__package__).joinpath("schema.fbs").read_text(encoding="utf-8"))


def _members(body: str) -> tuple[str, ...]:
    return tuple(member.strip() for member in body.split(",") if member.strip())
