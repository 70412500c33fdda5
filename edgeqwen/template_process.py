"""The child process that renders one Jinja template under limits: JSON in on stdin, JSON out on stdout.

It is run as a file by `template_sandbox` and imports nothing of this package.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import sys
from typing import Any

RENDER_S = 2.0
MEMORY_BYTES = 512 << 20  # address space of the whole process, where the system can limit it
MAX_OUTPUT_CHARS = 1 << 23


def main() -> None:
    """Answer {"kind": "text" | "error", "text": ...}; a process that was stopped at a limit answers nothing."""
    request = json.loads(sys.stdin.buffer.read())
    render = _compiler()
    _limit_memory()
    faulthandler.dump_traceback_later(RENDER_S, exit=True)  # a thread in C: ends even a single endless call
    try:
        answer = {"kind": "text", "text": render(request["source"], request["variables"])}
    except Exception as error:  # noqa: BLE001  whatever a template does must reach the parent as text
        answer = {"kind": "error", "text": f"{type(error).__name__}: {error}"[:2000]}
    sys.stdout.write(json.dumps(answer))


def _compiler() -> Any:
    """Give a function that renders: the environment is that of transformers' apply_chat_template."""
    from jinja2 import nodes  # noqa: PLC0415  the parent imports this module for its limits alone
    from jinja2.exceptions import TemplateError  # noqa: PLC0415
    from jinja2.ext import Extension, loopcontrols  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    class Generation(Extension):
        """`{% generation %}` marks the assistant's tokens for training; for a prompt it is its body."""

        tags = {"generation"}  # noqa: RUF012  Jinja's own interface

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().astimezone().strftime(form)

    def render(source: str, variables: dict[str, Any]) -> str:
        parts: list[str] = []
        length = 0
        for part in environment.from_string(source).generate(eos_token="<|im_end|>", **variables):  # noqa: S106
            parts.append(part)
            length += len(part)
            if length > MAX_OUTPUT_CHARS:
                raise ValueError(f"more than {MAX_OUTPUT_CHARS} characters of output")
        return "".join(parts)

    return render


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as transformers' own filter does; Jinja's would escape < and > for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _limit_memory() -> None:
    try:
        import resource  # noqa: PLC0415  not on Windows
    except ImportError:
        return
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ValueError, OSError):  # macOS refuses some limits
        return


if __name__ == "__main__":
    main()
