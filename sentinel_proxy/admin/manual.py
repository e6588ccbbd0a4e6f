"""
`GET /docs`: the description as one page that needs nothing else.

Plain HTML, made once at the start from the same document that programs get; no script, no font,
no image, nothing from another host.
"""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from hashlib import sha256
from html import escape
from re import sub
from typing import Any, Final

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 2rem 1rem 6rem; }
code, pre, .method { font-family: ui-monospace, monospace; font-size: .92em; }
h2 { margin-top: 3rem; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; }
summary { cursor: pointer; padding: .5rem .8rem; }
summary:hover { background: var(--soft); }
.method { display: inline-block; font-weight: 600; min-width: 4.5rem; }
.inside { border-top: 1px solid var(--line); padding: .2rem .8rem .8rem; overflow-x: auto; }
table { border-collapse: collapse; }
td { border-top: 1px solid var(--line); padding: .2rem 1rem .2rem 0; vertical-align: top; }
ul { margin: .2rem 0; padding-left: 1.2rem; }
"""

CONTENT_SECURITY_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Lets the page have its own style and nothing else."""


def page(description: Mapping[str, Any]) -> bytes:
    """Return the page for an OpenAPI *description*."""
    info = description["info"]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1><p>{_prose(info['description'])}</p>",
        '<p>The same for programs: <a href="/api/openapi.json">/api/openapi.json</a></p>',
    ]
    for tag in description["tags"]:
        parts += [f"<h2>For {escape(tag['name'])}</h2>", f"<p>{_prose(tag['description'])}</p>"]
        parts += _operations(description, tag["name"])
    parts.append("<h2>Shapes</h2>")
    for name, schema in description["components"]["schemas"].items():
        parts.append(f'<h3 id="{name}">{name}</h3>{_schema(schema)}')
    parts.append("</body></html>")
    return "\n".join(parts).encode()


def _operations(description: Mapping[str, Any], tag: str) -> Iterator[str]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            if tag in operation["tags"]:
                yield _operation(path, method, operation)


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    method = "WS" if "x-websocket-frame" in operation else method.upper()
    inside = [f"<p>{_prose(operation['description'])}</p>"] if "description" in operation else []
    if parameters := operation.get("parameters"):
        rows = "".join(map(_parameter, parameters))
        inside.append(f"<p>Parameters</p><table>{rows}</table>")
    if "requestBody" in operation:
        inside.append(f"<p>Body</p>{_content(operation['requestBody']['content'])}")
    for status, answer in operation["responses"].items():
        content = _content(answer.get("content", {}))
        inside.append(f"<p><code>{status}</code> {_prose(answer['description'])}</p>{content}")
    head = (
        f'<span class="method">{method}</span> <code>{escape(path)}</code> · {_prose(operation["summary"])}'
    )
    return f'<details><summary>{head}</summary><div class="inside">{"".join(inside)}</div></details>'


def _parameter(parameter: Mapping[str, Any]) -> str:
    name, where = escape(parameter["name"]), escape(parameter["in"])
    return (
        f"<tr><td><code>{name}</code></td><td>{where}</td><td>{_prose(parameter['description'])}</td>"
        f"<td>{_schema(parameter['schema'])}</td></tr>"
    )


def _content(content: Mapping[str, Any]) -> str:
    return "".join(
        f"<p><code>{escape(media)}</code></p>{_schema(each['schema'])}" for media, each in content.items()
    )


def _schema(schema: Mapping[str, Any]) -> str:
    """Return what a value may be: its type, what it means, and what is in it."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_schema, schema["anyOf"]))
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    parts = [f"<i>{escape(' or '.join(types))}</i>"]
    if "enum" in schema:
        parts.append(" · ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"] if value))
    if "description" in schema:
        parts.append(_prose(schema["description"]))
    if "items" in schema:
        parts.append(f"of {_schema(schema['items'])}")
    if isinstance(schema.get("additionalProperties"), Mapping):
        parts.append(f"of {_schema(schema['additionalProperties'])}")
    if fields := schema.get("properties"):
        required = schema.get("required", ())
        items = (_field(name, each, name in required) for name, each in fields.items())
        parts.append(f"<ul>{''.join(items)}</ul>")
    return " ".join(parts)


def _field(name: str, schema: Mapping[str, Any], required: bool) -> str:
    return f"<li><code>{escape(name)}</code>{'' if required else '?'} {_schema(schema)}</li>"


def _prose(words: str) -> str:
    """Return *words* as HTML; what stands between backquotes is code."""
    return sub(r"`([^`]+)`", r"<code>\1</code>", escape(words))
