"""
The one description of every face of the proxy, as OpenAPI 3.1.

`GET /api/openapi.json` gives it to programs and `manual` makes the page of it that people read.
A test compares it with the routes that are served, both ways, and answers with its schemas.
"""

from typing import Any

from sentinel_proxy.admin.endpoints import TAGS
from sentinel_proxy.admin.paths import for_apps, for_monitors, for_operators
from sentinel_proxy.admin.schemas import SCHEMAS


def description(version: str) -> dict[str, Any]:
    """Return the OpenAPI document. *version* is the proxy's."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sentinel Proxy",
            "version": version,
            "description": "An OpenAI-compatible reverse proxy that keeps applications alive "
            "through LLM outages.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": words} for name, words in TAGS.items()],
        "paths": for_apps() | for_operators() | for_monitors(),
        "components": {
            "schemas": dict(SCHEMAS),
            "securitySchemes": {
                "clientKey": {"type": "http", "scheme": "bearer", "description": "a key of `[[clients]]`"},
                "adminToken": {"type": "http", "scheme": "bearer", "description": "`admin.token`"},
            },
        },
    }
