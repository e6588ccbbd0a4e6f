"""What operators read about metrics and incidents is what the code does."""

import re
from pathlib import Path

import sentinel_proxy
from sentinel_proxy.incidents.words import MESSAGES, SEVERITIES
from sentinel_proxy.metrics import SERIES
from sentinel_proxy.model import Endpoint, IncidentType

DOCS = Path(sentinel_proxy.__file__).parent.parent / "docs"
CODE = re.compile(r"`([^`]+)`")


def table(page: str, header: str) -> list[list[str]]:
    """Return the cells of the table that begins with *header*."""
    lines = (DOCS / page).read_text().partition(header)[2].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_every_metric_is_documented_as_it_is() -> None:
    documented = [
        (CODE.findall(name)[0], kind, tuple(CODE.findall(labels)), text)
        for name, kind, labels, text in table("metrics.md", "| name |")
    ]

    assert documented == [(series.name, series.kind, series.labels, series.help) for series in SERIES]


def test_every_label_is_documented() -> None:
    documented = {label for row in table("metrics.md", "| label |") for label in CODE.findall(row[0])}

    assert documented == {label for series in SERIES for label in series.labels}


def test_the_endpoints_are_documented() -> None:
    (row,) = (row for row in table("metrics.md", "| label |") if row[0] == "`endpoint`")

    assert CODE.findall(row[1]) == [endpoint.value for endpoint in Endpoint]


def test_every_type_of_incident_is_documented_with_its_severity() -> None:
    documented = {CODE.findall(row[0])[0]: row[1] for row in table("incidents.md", "| type |")}

    assert documented == {type.value: SEVERITIES[type].value for type in IncidentType}


def test_every_type_of_incident_has_words() -> None:
    assert set(MESSAGES) == set(IncidentType)
