"""Examples in docstrings stand among the text. For the site they are put into a code block each."""

import re

import griffe


class Doctests(griffe.Extension):
    """Puts a fence around every run of lines that begins with ``>>>``."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^(>>> .*(?:\n(?!\s*$).*)*)", r"```pycon\n\1\n```", obj.docstring.value)
