"""Data that fits a JSON schema, made without thought: what a model writes whose server holds it to the schema."""

from collections.abc import Mapping
from typing import Any

_DEEPEST = 12


def fitting(schema: Mapping[str, Any], text: str) -> Any:
    """Give a value that fits a schema as pydantic writes them, with `text` wherever a text is wanted."""
    return _Filler(schema.get("$defs", {}), text).value(schema, 0)


class _Filler:
    def __init__(self, defs: Mapping[str, Any], text: str) -> None:
        self._defs, self._text = defs, text

    def value(self, schema: Mapping[str, Any], depth: int) -> Any:
        schema = self._settled(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][0]
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind in {"integer", "number"}:
            return _number(schema)
        return {"boolean": False, "null": None}.get(kind, self._string(schema))

    def _settled(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """Follow references, and take the first of several shapes that is not null."""
        while True:
            if "$ref" in schema:
                schema = self._defs[schema["$ref"].rsplit("/", 1)[-1]]
                continue
            shapes = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
            if not shapes:
                return schema
            schema = next((one for one in shapes if one.get("type") != "null"), shapes[0])

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        names = schema.get("required", ()) if depth > _DEEPEST else schema.get("properties", ())
        properties = schema.get("properties", {})
        return {name: self.value(properties.get(name, {}), depth + 1) for name in names}

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        if "prefixItems" in schema:
            return [self.value(one, depth + 1) for one in schema["prefixItems"]]
        least = schema.get("minItems", 0)
        count = least if depth > _DEEPEST else max(least, min(1, schema.get("maxItems", 1)))
        return [self.value(schema.get("items", {}), depth + 1) for _ in range(count)]

    def _string(self, schema: Mapping[str, Any]) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength", 10_000)
        return self._text.ljust(least, "x")[:most]


def _number(schema: Mapping[str, Any]) -> float:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None:
        return 0 if high is None else min(0, high - 1)
    step = 1 if "exclusiveMinimum" in schema or (high is not None and high - low >= 2) else 0
    return int(low) + step
