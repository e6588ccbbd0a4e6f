"""
JSON Schemas of tools, made safe for Ollama.

Ollama reads a tool's parameters into fixed types: some legal schemas are answered with a 400,
and what hides behind a reference is lost. So references are resolved, rare spellings become
common ones, and keywords of a shape that it cannot read are dropped; all else stays.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

from sentinel_proxy.providers.ollama.refusals import unsupported

Schema = dict[str, Any]

MAX_NODES: Final = 10_000
"""Of all sub-schemas, references resolved. Real tools have tens; nested references can mean billions."""

MAX_DEPTH: Final = 50
"""Of nested sub-schemas. OpenAI's own limit for strict schemas is 10."""


def safe_parameters(parameters: Mapping[str, Any], param: str) -> Schema:
    """
    Return *parameters* as an object schema that Ollama can read.

    Raises:
        UpstreamError: `UNSUPPORTED`, naming *param*: it is too large to be resolved.
    """
    schema = _Resolver(parameters, param).schema(parameters)
    schema["type"] = "object"
    schema.setdefault("properties", {})
    for definitions in ("$defs", "definitions"):
        schema.pop(definitions, None)
    return schema


class _Resolver:
    """Rewrites one schema; knows its root, and the references it is inside of."""

    def __init__(self, root: Mapping[str, Any], param: str) -> None:
        self._root = root
        self._param = param
        self._inside = ["#"]
        self._depth = 0
        self._nodes = 0

    def schema(self, schema: Mapping[str, Any]) -> Schema:
        """Return a rewritten copy of *schema*."""
        self._nodes += 1
        self._depth += 1
        if self._nodes > MAX_NODES or self._depth > MAX_DEPTH:
            raise unsupported(
                self._param, "a tool's schema is too large for Ollama once its references are resolved"
            )
        try:
            return self._rewritten(schema)
        finally:
            self._depth -= 1

    def _rewritten(self, schema: Mapping[str, Any]) -> Schema:
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            return self._inlined(reference, schema)
        conjuncts = schema.get("allOf")
        if isinstance(conjuncts, list) and len(conjuncts) == 1 and isinstance(conjuncts[0], Mapping):
            return self.schema({**conjuncts[0], **_without(schema, "allOf")})
        plain = _common_spelling(schema)
        return {
            keyword: self._value(keyword, value)
            for keyword, value in plain.items()
            if keyword not in _READABLE or _READABLE[keyword](value)
        }

    def _inlined(self, reference: str, schema: Mapping[str, Any]) -> Schema:
        target = {} if reference in self._inside else _at(self._root, reference)
        self._inside.append(reference)
        try:
            return self.schema({**target, **_without(schema, "$ref")})
        finally:
            self._inside.pop()

    def _value(self, keyword: str, value: Any) -> Any:
        if keyword in _MAPS and isinstance(value, Mapping):
            return {name: self._part(part) for name, part in value.items()}
        if keyword in _LISTS and isinstance(value, list):
            return [self._part(part) for part in value]
        return self.schema(value) if keyword in _SINGLES and isinstance(value, Mapping) else value

    def _part(self, part: Any) -> Schema:
        """A boolean is a legal schema that Ollama cannot read: it becomes the one that allows anything."""
        return self.schema(part) if isinstance(part, Mapping) else {}


def _common_spelling(schema: Mapping[str, Any]) -> Schema:
    plain = dict(schema)
    if "oneOf" in plain:
        plain.setdefault("anyOf", plain.pop("oneOf"))
        plain.pop("oneOf", None)
    if "const" in plain:
        plain["enum"] = [plain.pop("const")]
    return plain


def _at(root: Mapping[str, Any], reference: str) -> Mapping[str, Any]:
    """Return what a local reference points at (RFC 6901), or the empty schema."""
    found: Any = root
    for step in reference[1:].split("/")[1:]:
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _without(schema: Mapping[str, Any], keyword: str) -> Schema:
    return {key: value for key, value in schema.items() if key != keyword}


def _strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


# The keywords that Ollama reads, and whether it can read their value.
_READABLE: Final[dict[str, Callable[[Any], bool]]] = {
    "type": lambda value: isinstance(value, str) or _strings(value),
    "description": lambda value: isinstance(value, str),
    "properties": lambda value: isinstance(value, Mapping),
    "required": _strings,
    "anyOf": lambda value: isinstance(value, list),
    "enum": lambda value: isinstance(value, list),
}

# Where sub-schemas are found. Anything else (`enum`, `default`, `examples`) holds data.
_MAPS: Final = {"properties", "patternProperties", "dependentSchemas"}
_LISTS: Final = {"anyOf", "allOf", "prefixItems"}
_SINGLES: Final = {"items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames"}
