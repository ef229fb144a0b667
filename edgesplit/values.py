"""The one base of every value that is read, written or compared: frozen, strict, closed, with units in its types.

Must not know: any particular value.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from edgesplit.units import parse_size, parse_time


def _place(text: str) -> str:
    if not re.fullmatch(r"[\w:][\w:.%-]*", text) or text.count(":") == 1:
        raise ValueError("expected the name or the IP address of a machine, without a port")
    return text


Size = Annotated[int, BeforeValidator(parse_size)]  # bytes
Time = Annotated[float, BeforeValidator(parse_time)]  # seconds
Port = Annotated[int, Field(ge=1, le=65535)]
Place = Annotated[str, AfterValidator(_place)]  # where somebody listens
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]


class Value(BaseModel):
    """Frozen; unknown keys and silent conversions are errors. Sequences are tuples."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def to_json(self) -> str:
        return self.model_dump_json(indent=2)


def digest(value: Value | str | bytes) -> str:
    """sha256 of a value's canonical JSON, as 64 hex digits: equal values, equal digests."""
    if isinstance(value, Value):
        value = json.dumps(value.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()
