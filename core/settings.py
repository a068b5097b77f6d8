"""Settings: frozen dataclasses whose fields say once all that the house must know of them.

    @dataclass(frozen=True, kw_only=True)
    class Augmentation(Settings):
        crop: int = setting(2, "Largest random shift, in pixels.", at_least=0, at_most=31)

A value is checked and made plain wherever it comes from: the command line and files of flags give texts, programs give
values. Imports nothing but the standard library.
"""

import math
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
    compared: bool = False,
    named: str | None = None,
    **ends: Any,
) -> Any:
    """A field of a `Settings` class.

    Args:
        default: The only place where it stands.
        help: A line or two for the command line.
        identity: Whether another value makes a run another run.
        resumable: Whether it may change when a run is resumed; None is: where it is no part of the identity.
        compared: Whether it is among the first columns where runs are compared.
        named: What stands before it in the name of a run's folder; None is not in it.
        ends: Of its `Range`, if it is a number.
    """
    known: dict[str, Any] = {"help": help, "identity": identity, "compared": compared, "named": named}
    known |= {"resumable": not identity if resumable is None else resumable, "range": Range(**ends)}
    return field(default=default, metadata=known)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The base of groups of settings, which are frozen dataclasses that take keywords only.

    Raises:
        SettingError: When one is made, a value is not of its type, or out of its range.
        UsageError: The values contradict each other.
    """

    def __post_init__(self) -> None:
        hints = types_of(type(self))  # type: ignore[arg-type]
        for name, each in settings(type(self)).items():
            object.__setattr__(self, name, checked(each, hints[name], getattr(self, name)))
        for base in type(self).__mro__:
            if "check" in vars(base):
                base.check(self)  # type: ignore[attr-defined]

    def check(self) -> None:
        """Raise UsageError if values contradict each other; each group checks its own."""

    def plain(self) -> dict[str, Any]:
        """All values by name, as YAML and JSON take them."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value.as_posix() if isinstance(value, Path) else value for name, value in values.items()}

    def group(self, kind: type[Group]) -> Group:
        """The settings of one of the groups that this one is made of, alone."""
        return kind(**{each.name: getattr(self, each.name) for each in fields(kind)})

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Return this group as a run wrote it; names that are not of this group are passed over.

        What is no part of a run's identity, such as a folder, may be missing and has its default then.

        Raises:
            UsageError: A value is missing or invalid.
        """
        for name, each in settings(cls).items():
            if name not in values and each.metadata["identity"]:
                raise UsageError(f"lacks {name}")
        return cls(**{name: values[name] for name in settings(cls) if name in values})


def settings(kind: type[Settings]) -> dict[str, Field]:
    """The fields of a group by name."""
    return {each.name: each for each in fields(kind)}


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
    """The numbers that a setting may have; an end that is infinite is open."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    multiple_of: int = 1

    def __contains__(self, value: float) -> bool:
        whole = self.multiple_of == 1 or value % self.multiple_of == 0
        return self.at_least <= value <= self.at_most and self.above < value < self.below and whole

    def __str__(self) -> str:
        """ "from 0 to 31", "above 0", "a multiple of 10 from 0 to 49990"."""
        words = [] if self.multiple_of == 1 else [f"a multiple of {self.multiple_of}"]
        closed = self.at_least > -math.inf
        if min(self.at_most, self.below) == math.inf:
            words += [f"{self.at_least} or above" if closed else f"above {self.above}"]
        else:
            words += [f"from {self.at_least}" if closed else f"above {self.above} and"]
            words += [f"to {self.at_most}" if self.at_most < math.inf else f"to below {self.below}"]
        return " ".join(words)


@cache
def types_of(kind: Any) -> dict[str, Any]:
    """The types of a group's fields by name."""
    return get_type_hints(kind)


def choices(hint: Any) -> tuple[Any, ...]:
    """The values that a type lists; none if it does not."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def kinds(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type: (int, NoneType) of `int | None`."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def checked(each: Field, hint: Any, value: Any) -> Any:
    """A value, or the text of one, as the plain value of this type; SettingError if it is none or out of range."""
    if type(None) in kinds(hint) and (value is None or value == "null"):
        return None
    for kind in kinds(hint):
        try:
            plain = converted(kind, value)
        except (ValueError, TypeError, OverflowError, KeyError, RuntimeError):  # RuntimeError: there is no home folder
            continue
        allowed = each.metadata["range"]
        if isinstance(plain, int | float) and not isinstance(plain, bool) and plain not in allowed:
            raise SettingError(each.name, plain, f"must be {allowed}")
        return plain
    raise SettingError(each.name, value, f"must be {in_words(hint)}")


def converted(kind: Any, value: Any) -> Any:
    """A value or its text as `kind`; ValueError, TypeError or OverflowError if it is none."""
    if listed := choices(kind):
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


def in_words(hint: Any) -> str:
    """What a value of this type is, for people."""
    words = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path", str: "a text"}
    words |= {kind: f"one of {', '.join(map(repr, choices(kind)))}" for kind in kinds(hint) if choices(kind)}
    return " or ".join(words[kind] for kind in kinds(hint) if kind in words)
