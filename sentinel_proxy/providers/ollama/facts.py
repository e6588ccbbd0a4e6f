"""
What we have learned about one Ollama server: its version, its models, what they can do.

Learned from free endpoints and from refusals; never needed: what is unknown is tried, and an
unknown version counts as the newest.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

Version = tuple[int, int, int]

_VERSION: Final = re.compile(r"v?(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?")


def parse_version(text: object) -> Version | None:
    """
    Read the leading numbers of a version; whatever follows them is ignored.

    None for what is no version and for 0.0.0, which development builds call themselves: both
    count as the newest.
    """
    found = _VERSION.match(text) if isinstance(text, str) else None
    if found is None:
        return None
    major, minor, patch = (int(number or 0) for number in found.groups())
    return (major, minor, patch) if major or minor or patch else None


def normal_name(model: str) -> str:
    """Return *model* as Ollama compares names: lower case, and `latest` where no tag is given."""
    name = model.strip().lower()
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of one model."""

    capabilities: frozenset[str] | None = None  # None: not known
    families: frozenset[str] = frozenset()
    refused_thinking: bool = False  # it once answered that it cannot

    def lacks(self, capability: str) -> bool:
        """Whether *capability* is known to be missing."""
        return self.capabilities is not None and capability not in self.capabilities

    def has(self, capability: str) -> bool:
        """Whether *capability* is known to be there."""
        return self.capabilities is not None and capability in self.capabilities

    def learned(self, description: Mapping[str, Any]) -> "ModelFacts":
        """Return these facts with what `/api/show`, or one entry of `/api/tags`, adds to them."""
        facts = self
        capabilities = description.get("capabilities")
        if isinstance(capabilities, list):
            facts = replace(facts, capabilities=frozenset(_strings(capabilities)))
        details = description.get("details")
        if isinstance(details, Mapping):
            families = details.get("families")
            names = families if isinstance(families, list) else []
            facts = replace(facts, families=frozenset(_strings([details.get("family"), *names])))
        return facts


UNKNOWN: Final = ModelFacts()


class Facts:
    """Everything learned about one server; shared by all calls to it, and small whatever they ask for."""

    def __init__(self) -> None:
        self.version: Version | None = None
        self.installed: frozenset[str] | None = None
        """Normal names of the models it has; None until its list was read."""
        self._models: dict[str, ModelFacts] = {}

    def __repr__(self) -> str:
        return f"<Facts version={self.version} models={len(self._models)}>"

    def about(self, model: str) -> ModelFacts:
        """Return what is known of *model*."""
        return self._models.get(normal_name(model), UNKNOWN)

    def older_than(self, *version: int) -> bool:
        """Whether the server is known to be older than *version*."""
        return self.version is not None and self.version < version

    def learn(self, model: str, description: Mapping[str, Any]) -> None:
        """Take what the server says about *model*."""
        self._models[normal_name(model)] = self.about(model).learned(description)

    def thinking_refused(self, model: str) -> None:
        """Remember that *model* cannot think, whatever else is said of it."""
        self._models[normal_name(model)] = replace(self.about(model), refused_thinking=True)

    def install(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the server's whole list, name to description, and forget the models that are gone."""
        self._models = {
            normal_name(name): self.about(name).learned(description) for name, description in models.items()
        }
        self.installed = frozenset(self._models)


def _strings(values: Iterable[object]) -> list[str]:
    return [value for value in values if isinstance(value, str)]
