"""What ``etalumis VERB --help`` says: usage, settings, choices and examples, from the comments in the YAML files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from etalumis.conf.compose import PACKAGE, compose

_SETTING = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?: (?P<value>[^#]*?))?\s*(?:# (?P<comment>.*))?$")
_GROUP = re.compile(r"^  - (?:override )?/?(?P<group>\w+)(?:@\w+)?: (?P<choice>[^ #]+)(?: # (?P<comment>.*))?$")
_BASE = re.compile(r"^  - (?P<base>(?!_self_)[\w/]+)(?:@_here_)?$")
_PACKAGE = re.compile(r"# @package (?P<package>\S+)")
_EXAMPLES = "examples:"
_WIDEST = 40
_MULTIRUN = "  etalumis train ... --multirun K=A,B   train with every combination of such values, as a search"


class Setting(NamedTuple):
    """A key of a YAML file with its default, as written there, and its comment."""

    key: str
    default: str
    comment: str


def verb_help(verb: str, overrides: Sequence[str] = ()) -> str:
    """The help of one verb.

    Args:
        verb: names the file ``VERB.yaml``.
        overrides: choices of groups (``engine=rmh``) whose own settings are shown, instead of the defaults'.
    """
    compose(verb)  # never show what can't be used
    chosen = dict(word.split("=", 1) for word in overrides if "=" in word)
    text = read(f"{verb}.yaml")
    about, examples = header(text)
    groups = [match for line in text.splitlines() if (match := _GROUP.match(line))]
    lines = [f"usage: etalumis {verb} [KEY=VALUE ...]", "", *about]
    lines += ["", "settings (??? must be given):", *table(settings(text))]
    defaults = {match["group"]: match["choice"] for match in groups}
    for match in groups:
        group, default, comment = match["group"], match["choice"], match["comment"]
        if default.startswith("${"):  # the same choice as another group's
            other = default[2:-1]
            default = chosen.get(other, defaults[other])
        given = chosen.get(group, default)
        lines += ["", f"{group}=CHOICE{f': {comment}' if comment else ''}"]
        for name in choices(group):
            marks = f"{summary(group, name)}{' (the default)' if name == default else ''}"
            lines += table([Setting(name, "", marks)], 16)
        if given in choices(group) and (own := settings_of(group, given)):
            lines += [f"  settings of {group}={given}:"]
            where = package(group, given)
            lines += [f"  {line}" for line in table([s._replace(key=f"{where}{s.key}") for s in own])]
    lines += ["", _EXAMPLES, *(f"  {example}" for example in examples)]
    lines += [
        "",
        f"etalumis {verb} GROUP=CHOICE --help shows the settings of another choice.",
        "Any key can be changed, nested ones with dots, new ones with a plus sign in front (Hydra overrides).",
        *([_MULTIRUN] if verb == "train" else []),
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


def settings_of(group: str, choice: str) -> list[Setting]:
    """The keys of a choice's file, after those of the files that it builds on."""
    text = read(f"{group}/{choice}.yaml")
    found: dict[str, Setting] = {}
    for match in filter(None, map(_BASE.match, text.splitlines())):
        found |= {setting.key: setting for setting in settings_of(group, match["base"])}
    for setting in settings(text):
        before = found.get(setting.key, setting)
        found[setting.key] = setting._replace(comment=setting.comment or before.comment)
    return list(found.values())


def choices(group: str) -> list[str]:
    """The choices of a config group."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in files(PACKAGE).joinpath(group).iterdir()
        if entry.name.endswith(".yaml")
    )


def package(group: str, choice: str) -> str:
    """What stands before the keys of a choice's file on the command line."""
    match = _PACKAGE.match(read(f"{group}/{choice}.yaml"))
    name = match["package"] if match else group
    return "" if name == "_global_" else f"{name}."


def summary(group: str, choice: str) -> str:
    """The first comment of a choice's file."""
    about, _ = header(read(f"{group}/{choice}.yaml"))
    return next((line for line in about if not line.startswith("@package")), "")


def table(rows: list[Setting], width: int = 0) -> list[str]:
    """Aligned lines, the comments ``width`` characters in, or as far as it takes."""
    left = [f"{key}={default}" if default else key for key, default, _ in rows]
    width = width or min(_WIDEST, max(map(len, left), default=0))
    return [
        f"  {text:<{width}}  {row.comment}".rstrip()
        if len(text) <= width or not row.comment
        else f"  {text}\n  {'':<{width}}  {row.comment}"
        for text, row in zip(left, rows, strict=True)
    ]
