"""Settings: frozen dataclasses whose fields hold their own range, help and role in a run.

    @dataclass(frozen=True, kw_only=True)
    class Augmentation(Settings):
        crop: int = setting(2, "Largest random shift, in pixels.", at_least=0, at_most=31)

Values are checked and converted when an object is made: the command line gives texts, files of flags and programs give
values or texts. Imports only the standard library.
"""

import math
import re
import types
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from core.errors import SettingError, UsageError

FORMAT = 4  # of what a run writes: the only one that is read
LAST_READER = "9edcdda"  # the last commit that reads formats 1 to 3

Group = TypeVar("Group", bound="Settings")


def setting(
    default: Any,
    help: str,
    *,
    identity: bool = True,
    resumable: bool | None = None,
    named: str | None = "",
    follows: str | None = None,
    **ends: Any,
) -> Any:
    """Define a field of a `Settings` class.

    Args:
        default: The default, stated nowhere else.
        help: One or two lines for the command line.
        identity: Whether another value makes a run another run.
        resumable: Whether it may change when a run is resumed. None means: if it is not part of the identity.
        named: What precedes the value in the name of a run's folder, if not what `to_word` finds; None leaves it out.
        follows: The setting to which a value of this one belongs: where that is changed, this goes back to its default.
        ends: Arguments of `Range`, for a number.
    """
    known: dict[str, Any] = {"help": help, "identity": identity, "named": named}
    known |= {"resumable": not identity if resumable is None else resumable, "follows": follows}
    return field(default=default, metadata=known | {"range": Range(**ends)})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The base of groups of settings: frozen dataclasses with keyword arguments only.

    Raises:
        SettingError: A value is not of its type, or out of its range.
        UsageError: The values contradict each other.
    """

    def __post_init__(self) -> None:
        hints = get_types(type(self))  # type: ignore[arg-type]
        for name, each in get_fields(type(self)).items():
            object.__setattr__(self, name, check_value(each, hints[name], getattr(self, name)))
        self.check()

    def check(self) -> None:
        """Raise UsageError if values contradict each other; a group that checks calls `super().check()` too."""

    def plain(self) -> dict[str, Any]:
        """Return all values by name, as YAML and JSON take them."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value.as_posix() if isinstance(value, Path) else value for name, value in values.items()}

    def group(self, kind: type[Group]) -> Group:
        """Return the settings of one of the groups that this one consists of."""
        return kind(**{each.name: getattr(self, each.name) for each in fields(kind)})

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """Return these settings with changes; those that `drop_followers` leaves out go back to their defaults."""
        return type(self)(**drop_followers(type(self), self.plain(), changes) | dict(changes)) if changes else self

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Return this group as a run wrote it; names that are not of this group are passed over.

        What is no part of a run's identity, such as a folder, may be missing and has its default then.

        Raises:
            UsageError: A value is missing or invalid.
        """
        for name, each in get_fields(cls).items():
            if name not in values and each.metadata["identity"]:
                raise UsageError(f"lacks {name}")
        return cls(**{name: values[name] for name in get_fields(cls) if name in values})


def get_fields(kind: type[Settings]) -> dict[str, Field]:
    """Return the fields of a group by name."""
    return {each.name: each for each in fields(kind)}


def drop_followers(kind: type[Settings], values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` without the settings that follow one to which `changes` give another value.

    The learning rate of one optimizer, for example, is not that of another.
    """
    fields = get_fields(kind)

    def is_valid(name: str) -> bool:
        leader = fields[name].metadata["follows"] if name in fields else None
        if leader is None or leader not in changes:
            return True
        return to_text(changes[leader]) == to_text(values.get(leader, fields[leader].default))

    return {name: value for name, value in values.items() if is_valid(name)}


def check_format(entries: Mapping[str, Any]) -> None:
    """Raise UsageError if the entry "format" of what a run wrote is not FORMAT."""
    found = entries.get("format")
    if str(found) != str(FORMAT):
        raise UsageError(
            f"has format {found}, and this version reads format {FORMAT} only; "
            f"commit {LAST_READER} is the last that reads earlier ones"
        )


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that a setting may have."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.at_least <= value <= self.at_most and self.above < value < self.below

    def __str__(self) -> str:
        """Return a text such as "at least 0 and at most 31"."""
        ends = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{word} {end}" for word, end in ends.items() if math.isfinite(end))


@cache
def get_types(kind: Any) -> dict[str, Any]:
    """Return the types of a group's fields by name."""
    return get_type_hints(kind)


def get_choices(hint: Any) -> tuple[Any, ...]:
    """Return the values of a `Literal`, and none of another type."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def get_alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the parts of a union: (int, NoneType) of `int | None`."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def check_value(each: Field, hint: Any, value: Any) -> Any:
    """Convert a value, or its text, to the type of a setting; SettingError if it is invalid or out of range."""
    if type(None) in get_alternatives(hint) and (value is None or value == "null"):
        return None
    for kind in get_alternatives(hint):
        try:
            plain = convert_value(kind, value)
        except (ValueError, TypeError, OverflowError, KeyError, RuntimeError):  # RuntimeError: there is no home folder
            continue
        allowed = each.metadata["range"]
        if isinstance(plain, int | float) and not isinstance(plain, bool) and plain not in allowed:
            raise SettingError(each.name, plain, f"must be {allowed}")
        return plain
    raise SettingError(each.name, value, f"must be {describe_type(hint)}")


def convert_value(kind: Any, value: Any) -> Any:
    """Convert a value or its text to `kind`; KeyError, ValueError, TypeError or OverflowError if that is impossible."""
    if listed := get_choices(kind):
        if value in listed:
            return value
        raise ValueError
    if kind is bool:
        return {"true": True, "false": False}[str(value).lower()]
    if kind is int:
        if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
            raise ValueError
        return int(value)
    if kind is float:
        if isinstance(value, bool) or not math.isfinite(float(value)):
            raise ValueError
        return float(value)
    if kind is Path:
        return Path(value).expanduser()
    if kind is str and isinstance(value, str):
        return value
    raise TypeError


def to_text(value: Any) -> str:
    """Return the text of a setting's value: "null", "true", "0.1". `check_value` converts it back."""
    if isinstance(value, Path):
        return value.as_posix()
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def to_word(each: Field, value: Any) -> str:
    """Return a setting and its value as a word of a file name: "crop0", "no-flip", "median", "lr0.1"."""
    name, prefix = each.name.replace("_", "-"), each.metadata["named"]
    if value is False or value == "none":
        word = f"no-{name}"
    elif value is True:
        word = name
    elif isinstance(value, str):
        value = value.rpartition(":")[2]  # the class in "file.py:Class"
        word = prefix + (value[:8] if name.endswith("sha256") else value)
    else:
        word = f"{prefix or name}{value:g}"
    return re.sub(r"[^\w.=+-]+", "-", word)


def describe_type(hint: Any) -> str:
    """Return what a value of this type is, such as "a whole number"."""
    words = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path", str: "a text"}
    parts = get_alternatives(hint)
    words |= {kind: f"one of {', '.join(map(repr, get_choices(kind)))}" for kind in parts if get_choices(kind)}
    return " or ".join(words[kind] for kind in parts if kind in words)
