"""What the name of a model is: one of several, a server's address, and what of it may be written down."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit, urlunsplit


def is_url(name: str) -> bool:
    """Whether a model's name is the address of a server."""
    return name.startswith(("http://", "https://"))


def models_of(teacher: str) -> dict[str, str]:
    """The models of several teachers, by the names that a text gives them; of one, its own by the name ``""``.

    Raises:
        ValueError: for a name that stands twice.

    >>> models_of("small=student large=teacher"), models_of("teacher")
    ({'small': 'student', 'large': 'teacher'}, {'': 'teacher'})
    """
    parts = [part.partition("=") for part in teacher.split()]
    if len(parts) < 2 or not all(equals for _, equals, _ in parts):
        return {"": teacher}
    models = {name: model for name, _, model in parts}
    if len(models) < len(parts):
        raise ValueError(f"each teacher needs a name of its own; {teacher!r} has one twice")
    return models


def without_secrets(value: Any) -> Any:
    """Addresses of servers without their login and query, as of ``"a=URL b=URL"``; any other value as it is.

    >>> without_secrets("http://ann:secret@127.0.0.1:8000/v1?key=secret#m"), without_secrets(20)
    ('http://127.0.0.1:8000/v1#m', 20)
    """
    if not isinstance(value, str) or "://" not in value:
        return value
    if len(models := models_of(value)) > 1:
        return " ".join(f"{name}={without_secrets(model)}" for name, model in models.items())
    if not is_url(value):
        return value
    parts = urlsplit(value)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", parts.fragment))
