"""One protocol for all views: an ES module with ``render({model, el})``, as anywidget defines it.

``NAME.js`` beside this file is the module of a view; ``bundle`` joins it with those that it imports. ``static_view`` is
HTML with the data and the module: it needs no kernel and no network. ``Widget`` is an anywidget whose model is
synchronised with Python; its messages call methods by name.

Data never becomes markup: it is JSON without any ``<``, and the modules write text nodes only.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import uuid
from functools import cache
from typing import Any

import anywidget
import traitlets as t

from relaylab.views.theme import NO_MATH, Html, source, style
from relaylab.views.trace_view import visible

# Three times: the rules must outweigh the notebook's own for tables and buttons.
STYLE = style(".rl-view" * 3, "trace.css", "views.css")
EXECUTED = "RELAYLAB_RESULT"  # environment variable of a notebook that is executed: nobody is there to click
_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./(\w+)\.js";$', re.M)
_EXPORT = re.compile(r"^export (?:const|function) (\w+)", re.M)


@cache
def bundle(name: str) -> str:
    """A module and all that it imports, as statements without import and export: ``$NAME`` holds the exports of NAME.

    >>> bundle("player").index("const $shared =") < bundle("player").index("const $player =")
    True
    """
    done: dict[str, str] = {}

    def add(module: str) -> None:
        text = source(f"{module}.js")
        for _, needed in _IMPORT.findall(text):
            if needed not in done:
                add(needed)
        body = _IMPORT.sub(lambda m: f"const {{{m[1].replace(' as ', ': ')}}} = ${m[2]};", text)
        names = ", ".join(_EXPORT.findall(body))
        body = re.sub(r"^export (?=const|function)", "", body, flags=re.M)
        done[module] = f"const ${module} = (() => {{\n{body}\nreturn {{ {names} }};\n}})();"

    add(name)
    return "\n".join(done.values())


def static_view(name: str, state: dict[str, Any], *, label: str, words: str) -> Html:
    """A view as HTML that needs no kernel.

    Args:
        name: The module, without its suffix.
        state: What ``model.get`` returns, by name; JSON values, no NaN.
        label: The view's name for a screen reader, as text.
        words: The view in words, as HTML, escaped by the caller. It is all that remains where scripts are removed.

    Raises:
        ValueError: The state has a value that JSON cannot hold.

    >>> page = static_view("player", {"traces": [], "x": "</script>"}, label="A relay", words="<p>none</p>").html
    >>> page.count("</script>"), '"x":"\\\\u003c/script>"' in page
    (2, True)
    """
    payload = json.dumps(state, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    key = hashlib.sha256(f"{name} {payload}".encode()).hexdigest()[:16]
    page = (
        f'<section class="rl-view {NO_MATH}" data-rl="{key}" aria-label="{html.escape(label)}"><style>{STYLE}</style>'
        f'<script type="application/json">{payload}</script><div class="rl-stage"></div>'
        f'<details class="rl-words" open><summary>In words</summary>{words}</details>'
        f'<script>(()=>{{"use strict";\n{bundle(name)}\n$shared.mount("{key}", ${name}.render);}})();</script>'
        "</section>"
    )
    return Html(page, label)


class Widget(anywidget.AnyWidget):
    """The base of the views that need a kernel.

    It is displayed as two outputs: the widget, and a record in plain HTML (``record``). The record is updated with the
    widget, and a page in which the widget lives hides it. So a saved notebook and its export keep the results.

    ``view`` is the name of the module; ``actions`` are the methods that a message from the page may call.
    """

    view: str
    actions: tuple[str, ...] = ()

    setup = t.Dict().tag(sync=True)  # what the page needs only once
    message = t.Unicode().tag(sync=True)  # the status line, read aloud by the page
    failed = t.Bool(False).tag(sync=True)  # the message reports an error
    mark = t.Unicode().tag(sync=True)  # of the record in the page

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if view := cls.__dict__.get("view"):
            cls._esm, cls._css = f"{bundle(view)}\nexport default {{ render: ${view}.render }};\n", STYLE

    def __init__(self, **traits: Any):
        self._displayed = False
        super().__init__(mark=uuid.uuid4().hex, **traits)
        self.on_msg(self._receive)

    def record_html(self) -> Html:
        """What the record shows; a subclass defines it."""
        raise NotImplementedError

    def record(self) -> Html:
        """The results as HTML that needs neither a kernel nor a script."""
        page = self.record_html()
        return Html(f'<div class="{NO_MATH}" data-rl-record="{self.mark}">{page.html}</div>', page.text)

    def update_record(self) -> None:
        """Bring the displayed record up to date."""
        if self._displayed:
            from IPython.display import update_display

            update_display(self.record(), display_id=self.mark)

    def report(self, message: str, *, failed: bool = False) -> None:
        """Show a message in the status line."""
        self.failed = failed
        self.message = visible(message)

    def _receive(self, _: Any, content: Any, buffers: Any) -> None:
        """A message of the page: {"do": the name of an action, and its keywords}. Errors go to the status line."""
        try:
            keywords = dict(content)
            name = keywords.pop("do", None)
            if name not in self.actions:
                raise ValueError(f"there is no action {name!r}; there are {', '.join(self.actions)}")
            getattr(self, name)(**keywords)
        except (ValueError, RuntimeError, TypeError) as error:
            self.report(str(error), failed=True)

    def open(self) -> None:
        """Connect to the front end, unless the notebook is executed without a reader."""
        if not os.environ.get(EXECUTED):
            super().open()

    def _widget_bundle(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return super()._repr_mimebundle_() or ({}, {})

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any] | tuple[dict[str, Any], dict[str, Any]]:
        """The record, and the widget if it is connected: for programs that take only one output."""
        bundle = self.record()._repr_mimebundle_()
        if self.comm is None:
            return bundle
        data, metadata = self._widget_bundle()
        return data | bundle, metadata

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if self.comm is not None:
            data, metadata = self._widget_bundle()
            display(data | {"text/html": "", "text/plain": ""}, metadata=metadata, raw=True)
        display(self.record(), display_id=self.mark)
        self._displayed = True
