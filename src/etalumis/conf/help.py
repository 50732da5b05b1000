"""What ``etalumis VERB --help`` says: usage, settings, choices and examples, from the comments in the YAML files."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import NamedTuple

from etalumis.conf.compose import PACKAGE, compose

_SETTING = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?: (?P<value>[^#]*?))?\s*(?:# (?P<comment>.*))?$")
_GROUP = re.compile(r"^  - (?:override )?/?(?P<group>\w+)(?:@\w+)?: (?P<choice>\w+)(?: # (?P<comment>.*))?$")
_EXAMPLES = "examples:"


class Setting(NamedTuple):
    """A key of a YAML file with its default, as written there, and its comment."""

    key: str
    default: str
    comment: str


def verb_help(verb: str) -> str:
    """The help of one verb. Composes its settings, so that it never shows what can't be used."""
    compose(verb)
    text = read(f"{verb}.yaml")
    about, examples = header(text)
    groups = [match for line in text.splitlines() if (match := _GROUP.match(line))]
    lines = [f"usage: etalumis {verb} [KEY=VALUE ...]", "", *about]
    lines += ["", "settings (??? must be given):", *table(settings(text))]
    for match in groups:
        group, comment = match["group"], match["comment"]
        default = "" if match["choice"] == "null" else f", default {match['choice']}"
        lines += ["", f"{group}=CHOICE{f': {comment}' if comment else ''}{default}"]
        lines += table([Setting(name, "", summary(group, name)) for name in choices(group)])
    lines += ["", _EXAMPLES, *(f"  {example}" for example in examples)]
    lines += [
        "",
        "Any key can be changed, nested ones with dots, new ones with a plus sign in front (Hydra overrides).",
        f"  etalumis {verb} ... --cfg              print all settings and stop",
        f"  etalumis {verb} ... --config-dir DIR   choices of your own: DIR/GROUP/CHOICE.yaml",
        "  HYDRA_FULL_ERROR=1 or debug=true       show the traceback of errors",
    ]
    return "\n".join(lines) + "\n"


def read(path: str) -> str:
    """A file of the package's configs."""
    return files(PACKAGE).joinpath(*path.split("/")).read_text(encoding="utf-8")


def header(text: str) -> tuple[list[str], list[str]]:
    """The comment on top of a file: what it is about, and the examples in it."""
    comment = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").removeprefix(" "))
    if _EXAMPLES not in comment:
        return comment, []
    at = comment.index(_EXAMPLES)
    about = comment[:at]
    while about and not about[-1]:
        about.pop()
    return about, [line.strip() for line in comment[at + 1 :]]


def settings(text: str) -> list[Setting]:
    """The keys of a file, nested ones with dots; groups and what interpolates are left out."""
    found: list[Setting] = []
    path: list[str] = []
    for line in text.splitlines():
        match = _SETTING.match(line)
        if match is None or match["key"] in ("defaults", "_target_", "_partial_"):
            continue
        path = [*path[: len(match["indent"]) // 2], match["key"]]
        if match["value"]:
            found.append(Setting(".".join(path), match["value"], match["comment"] or ""))
    return found


def choices(group: str) -> list[str]:
    """The choices of a config group."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in files(PACKAGE).joinpath(group).iterdir()
        if entry.name.endswith(".yaml")
    )


def summary(group: str, choice: str) -> str:
    """The first line of a choice's file, and the settings it has."""
    text = read(f"{group}/{choice}.yaml")
    about, _ = header(text)
    return about[0] if about else ""


def table(rows: list[Setting]) -> list[str]:
    """Aligned lines."""
    left = [f"{key}={default}" if default else key for key, default, _ in rows]
    width = min(36, max(map(len, left), default=0))
    return [
        f"  {text:<{width}}  {row.comment}".rstrip()
        if len(text) <= width or not row.comment
        else f"  {text}\n  {'':<{width}}  {row.comment}"
        for text, row in zip(left, rows, strict=True)
    ]
