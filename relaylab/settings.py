"""Settings that people write: YAML read safely, misspelt names, and keys that must not be saved."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import yaml

MAX_ALIASES, MAX_DEPTH = 20, 50  # of a YAML text: more could stand for gigabytes, or take hours
# call_tokens is a number of tokens; hf_token is a key.
SECRET_NAME = re.compile(r"api_?key|secret|passw(or)?d|credential|(^|_)(key|keys|token|auth)$", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"\b(sk|xai|gsk|nvapi)[-_][\w-]{16,}|\b(hf|gh[opsur]|github_pat|glpat)[-_]\w{16,}\b(?!-)"
    r"|\b(?-i:AKIA|ASIA)\w{12,}|\b(?-i:AIza)[\w-]{20,}|\bxox[a-z]-[\w-]{10,}|\bbearer\s+(?=\S*\d)[\w.~+/-]{8,}"
    r"|\w://[^/@\s]+@|[?&](api_?key|key|token|access_token|secret|password|sig(nature)?)=[^&\s]|PRIVATE KEY-----",
    re.IGNORECASE,
)


def read_yaml(text: str, where: str) -> Any:
    """Read a YAML text: 1e-3 is a number, a key may not stand twice, aliases and levels are few.

    Raises:
        ValueError: names ``where`` if it cannot be read.

    >>> read_yaml("{rate: 1e-3, name: 'b c'}", "-p")
    {'rate': 0.001, 'name': 'b c'}
    """
    try:
        aliases = depth = 0
        for event in yaml.parse(text, _Loader):
            aliases += isinstance(event, yaml.AliasEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if aliases > MAX_ALIASES or depth > MAX_DEPTH:
                raise ValueError(f"more than {MAX_ALIASES} aliases or {MAX_DEPTH} levels")
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not YAML that can be read ({' '.join(str(error).split())})") from None


def nearest(name: object, valid_names: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest valid one, or all of them.

    >>> nearest("step", ["steps", "beta"]), nearest("zzz", ["steps", "beta"])
    ("did you mean 'steps'?", 'there are steps, beta')
    """
    names = list(valid_names)
    near = difflib.get_close_matches(str(name), names, 1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names) or 'none'}"


def holds_secret(name: str, value: Any) -> bool:
    """Whether a name is that of a key, or any name or text inside the value is.

    >>> holds_secret("steps", 3), holds_secret("hf_token", ""), holds_secret("urls", ["http://me:pw@host/v1"])
    (False, True, True)
    """
    if isinstance(value, dict):
        inside = any(holds_secret(str(key), inner) for key, inner in value.items())
    elif isinstance(value, list | tuple):
        inside = any(holds_secret("", inner) for inner in value)
    else:
        inside = isinstance(value, str) and SECRET_VALUE.search(value) is not None
    return inside or SECRET_NAME.search(name) is not None


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise ValueError(f"the key {twice!r} stands twice")
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")  # PyYAML's own needs a dot and a sign
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
