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

FORMAT = 4  # of what a run writes down; what has no number is of format 1

Group = TypeVar("Group", bound="Settings")


def setting(
    default: Any,
    help: str,
    *,
    identity: bool = True,
    resumable: bool | None = None,
    compared: bool = False,
    named: str | None = None,
    since: int = 1,
    before: Any = None,
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
        since: The first FORMAT in which it is always there.
        before: What runs that do not have it were like.
        ends: Of its `Range`, if it is a number.
    """
    known = {"help": help, "identity": identity, "compared": compared, "named": named, "since": since, "before": before}
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
    def read(cls, values: Mapping[str, Any], format: int) -> Self:
        """What a run wrote, with what runs of its format were like where it has no value.

        Names that are not of this group are passed over. What is no part of a run's identity, such as a folder, need
        not be there.

        Raises:
            UsageError: It lacks a value, or has one that is none.
        """
        complete = {}
        for name, each in settings(cls).items():
            known = each.metadata
            if name not in values and known["identity"] and known["since"] <= format:
                raise UsageError(f"lacks {name}")
            complete[name] = values.get(name, known["before"] if known["identity"] else each.default)
        return cls(**complete)


def settings(kind: type[Settings]) -> dict[str, Field]:
    """The fields of a group by name."""
    return {each.name: each for each in fields(kind)}


def refuse_newer(format: int) -> None:
    """Raise UsageError if a later version of this program wrote it."""
    if not isinstance(format, int) or format > FORMAT:
        raise UsageError(f"of format {format}, which a newer version wrote; this one knows up to {FORMAT}")


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
