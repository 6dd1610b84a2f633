"""Record classes, frozen, typed and checked when they are made; errors in words; records as JSON values."""

import dataclasses
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic.dataclasses import dataclass as checked_dataclass

from ..errors import UserError

SCHEMA = 2  # of what is written; what older schemas wrote is read
T = TypeVar("T")

Count = Annotated[int, pydantic.Field(ge=0)]
Size = Annotated[int, pydantic.Field(ge=1)]
Finite = pydantic.FiniteFloat
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Scalar = bool | int | pydantic.FiniteFloat | str | None
SettingValues = dict[str, Scalar]


class _Making(type):
    """Class of records: one that does not hold together is a UserError, wherever it is made."""

    def __call__(cls, *values: Any, **fields: Any) -> Any:
        try:
            return super().__call__(*values, **fields)
        except pydantic.ValidationError as error:
            name = f"{cls.kind} record" if hasattr(cls, "kind") else cls.__name__
            hint = ": does the model yield NaN?" if error.errors()[0]["type"] == "finite_number" else ""
            raise UserError(f"not a valid {name}: {said(error)}{hint}") from error


class TypedRecord(metaclass=_Making):
    """Base of the records and of their parts."""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, pydantic.Field))
def record(cls: type[T]) -> type[T]:
    """Class decorator of a record or a part of one: types and checks hold from the moment it is made.

    Keys that are not known are left aside. A method under ``check`` raises a ValueError where fields do not fit each
    other. Fields named in ``LEFT_OUT`` are not written where they are None or empty.
    """
    config = pydantic.ConfigDict(defer_build=True)  # a start that needs one record does not wait for the others
    return checked_dataclass(frozen=True, config=config)(cls)


check = pydantic.model_validator(mode="after")


def either(usual: type, name: str, other: type, key: str, other_name: str = "") -> Any:
    """Type of one record or another, told by a key that only the other has.

    Args:
        name, other_name: what stands for either in the place that an error names; the key for the other by default.
    """
    second = other_name or key

    def tag(value: Any) -> str:
        special = key in value if isinstance(value, dict) else isinstance(value, other)
        return second if special else name

    tagged = Annotated[usual, pydantic.Tag(name)] | Annotated[other, pydantic.Tag(second)]
    return Annotated[tagged, pydantic.Discriminator(tag)]


def said(error: pydantic.ValidationError) -> str:
    """The first thing that does not fit: its place, and why."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(step) for step in first["loc"])
    own = first["type"] == "value_error"
    reason = str(first["ctx"]["error"]) if own else first["msg"].lower()
    return f"{place}: {reason}" if place else reason


def plain(value: Any) -> Any:
    """A record as JSON holds it: dicts, lists and scalars; what ``LEFT_OUT`` names is there only where it tells
    something.
    """
    if dataclasses.is_dataclass(value):
        spare = getattr(value, "LEFT_OUT", ())
        named = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: plain(one) for name, one in named if name not in spare or one not in (None, {}, [])}
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value
