"""Render the chat template of a bundle with Jinja, in a sandbox and with the functions that ``transformers`` has there.

A template comes from whoever published the model. It sees plain JSON values only, and the sandbox refuses attributes
that lead out of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from edgepeft.data.errors import BadChatTemplate
from edgepeft_runtime.errors import MissingExtra

Messages = Sequence[Mapping[str, Any]]
"""A conversation: mappings with ``role`` and ``content``, and whatever else the template reads."""


class RenderingFailed(Exception):
    """The template refuses a conversation. Callers, who know the row, convert this to an error."""


def compiled(template: str) -> Callable[..., str]:
    """Return a function from the template's variables to the rendered text.

    Raises:
        DataError: Jinja is not installed, or the template is not valid.
    """
    try:
        from jinja2 import TemplateError, nodes, pass_eval_context
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from jinja2.utils import Namespace
    except ImportError:
        raise MissingExtra(
            "Conversations need the package jinja2, which is not installed.",
            context=None,
            hint="pip install 'edgepeft[text]'",
        ) from None

    class Generation(Extension):  # type: ignore[misc]  # jinja2 is not checked
        """The tag around an assistant's turn in templates made for training, which renders its content."""

        tags = {"generation"}  # noqa: RUF012  (Jinja reads it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

        @pass_eval_context  # type: ignore[untyped-decorator]
        def _render(self, _context: Any, caller: Callable[[], str]) -> str:
            return caller()

    class OwnNamespace(Namespace):  # type: ignore[misc]
        """Refuses attributes with a leading underscore, which reach the interpreter's internals."""

        def __setitem__(self, name: str, value: object) -> None:
            if name.startswith("_"):
                raise TemplateError(f"a namespace has no attribute {name!r}")
            super().__setitem__(name, value)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=refuse,
        strftime_now=lambda form: datetime.now().strftime(form),
        namespace=OwnNamespace,
        dict=lambda *args, **values: dict(*args, **values),
    )
    try:
        render = environment.from_string(template).render
    except (TemplateError, RecursionError) as failure:
        raise BadChatTemplate(
            "The bundle's chat template is not valid.",
            context=str(failure),
            hint="prepare the bundle from a model whose tokenizer has a valid chat template.",
        ) from failure

    def rendered(**values: object) -> str:
        try:
            return str(render(**values))
        except Exception as failure:  # the template raises any exception
            raise RenderingFailed(f"{type(failure).__name__}: {failure}") from failure

    return rendered


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as ``transformers`` does; Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
