"""The provider around the translation: address, credential, health, what it learns."""

import json
from typing import Any

import pytest
from ollama_support import call, provider
from pydantic import SecretStr

from sentinel_proxy.config import ProviderConfig, ProviderTimeoutsConfig
from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import Endpoint
from sentinel_proxy.providers.ollama import OllamaProvider
from sentinel_proxy.providers.ollama.facts import normal_name, parse_version
from sentinel_proxy.providers.ollama.ids import MAX_ID_CHARS, mint_id

CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("given", "base_url", "target"),
    [
        ("http://localhost:11434", "http://localhost:11434", "/api/chat"),
        ("http://localhost:11434/", "http://localhost:11434", "/api/chat"),
        ("http://localhost:11434/v1/", "http://localhost:11434", "/api/chat"),
        ("https://ollama.com/api", "https://ollama.com", "/api/chat"),
        ("http://h/team/api/chat", "http://h/team", "/team/api/chat"),
        ("http://h/api/generate", "http://h", "/api/chat"),
    ],
)
def test_the_servers_address_is_found_in_whatever_was_pasted(given: str, base_url: str, target: str) -> None:
    ollama = provider(base_url=given)

    assert (ollama.base_url, ollama.encode(call(CHAT)).target) == (base_url, target)


def test_nothing_of_the_caller_but_its_trace_is_sent_on() -> None:
    request = call(CHAT)
    request.headers = ((b"authorization", b"Bearer sk-caller"), (b"host", b"proxy"), (b"origin", b"http://a"))
    request.traceparent = b"00-1-2-01"

    sent = provider().encode(request)

    assert sent.headers == [
        (b"accept", b"application/json, application/x-ndjson"),
        (b"content-type", b"application/json"),
        (b"traceparent", b"00-1-2-01"),
    ]


def test_the_operators_key_is_sent_and_never_shown() -> None:
    ollama = provider(api_key=SecretStr("s3cret"))

    for request in (ollama.encode(call(CHAT)), ollama.probe()):
        assert (b"authorization", b"Bearer s3cret") in request.headers
    assert "s3cret" not in repr(ollama) + str(ollama.settings()) + str(vars(ollama))


def test_it_is_built_from_the_configuration() -> None:
    config = ProviderConfig(
        name="local",
        kind="ollama",
        base_url="http://localhost:11434/v1",
        models={"*": "llama3.2"},
        keep_alive="5m",
        num_ctx=8192,
        context_window=8192,
        max_in_flight=2,
        timeouts=ProviderTimeoutsConfig(first_token=300),
    )

    ollama = OllamaProvider.from_config(config)

    assert repr(ollama) == "<OllamaProvider local>"
    assert (ollama.kind, ollama.base_url, ollama.transport) == ("ollama", "http://localhost:11434", "http1")
    assert (ollama.timeouts, ollama.max_in_flight, ollama.context_window) == ({"first_token": 300}, 2, 8192)
    assert ollama.settings() == {
        "kind": "ollama",
        "transport": "http1",
        "models": {"*": "llama3.2"},
        "keep_alive": "5m",
        "num_ctx": 8192,
        "context_overflow": "error",
        "continuation": "prefill",
    }


@pytest.mark.parametrize(("given", "sent"), [("5m", "5m"), ("-1", -1), (" 60 ", 60), (0, 0), ("-1m", "-1m")])
def test_a_duration_is_sent_as_ollama_reads_it(given: str | int, sent: str | int) -> None:
    body = provider(keep_alive=given).encode(call(CHAT)).body

    assert isinstance(body, bytes)
    assert json.loads(body)["keep_alive"] == sent


def test_it_serves_all_but_what_is_passed_through() -> None:
    ollama = provider()

    assert [endpoint for endpoint in Endpoint if not ollama.serves(endpoint)] == [Endpoint.PASSTHROUGH]
    with pytest.raises(UpstreamError) as refused:
        ollama.encode(call(CHAT, Endpoint.PASSTHROUGH))
    assert refused.value.kind is FailureKind.UNSUPPORTED


def test_the_probe_is_free() -> None:
    probe = provider(base_url="http://h/team").probe()

    assert (probe.method, probe.target, probe.body) == ("GET", "/team/api/tags", b"")


@pytest.mark.parametrize("body", [b"", b"Ollama is running", b"[]", b"{}", b'{"models":null}'])
def test_a_catalogue_that_is_none_is_a_failure_and_changes_nothing(body: bytes) -> None:
    ollama = provider()
    ollama.catalogue(b'{"models":[{"name":"a","capabilities":["vision"]}]}')

    with pytest.raises(UpstreamError) as failed:
        ollama.catalogue(body)

    assert failed.value.kind is FailureKind.PROTOCOL
    assert (ollama.facts.installed, ollama.facts.about("a").has("vision")) == (frozenset({"a:latest"}), True)


def test_a_catalogue_skips_what_it_cannot_read() -> None:
    models = [{"name": "a", "modified_at": "?"}, {"name": ""}, 7, {"model": "b:1", "name": "c"}]

    entries = provider().catalogue(json.dumps({"models": models}).encode())

    assert [(entry.id, entry.created) for entry in entries] == [("a", 0), ("b:1", 0)]


def test_a_catalogue_keeps_what_was_learned_of_its_models_and_forgets_the_others() -> None:
    ollama = provider()
    ollama.learn_show("kept", b'{"capabilities":["tools"],"details":{"families":["gptoss"]}}')
    ollama.learn_show("gone", b'{"capabilities":["tools"]}')

    ollama.catalogue(b'{"models":[{"name":"Kept:latest"}]}')

    assert ollama.facts.about("kept").has("tools")
    assert ollama.facts.about("kept").families == {"gptoss"}
    assert ollama.facts.about("gone").capabilities is None


def test_it_knows_whether_a_model_is_installed_once_it_has_seen_the_list() -> None:
    ollama = provider(models={"a": "Here", "b": "gone"})
    before = ollama.offers("a")

    ollama.catalogue(b'{"models":[{"name":"here:latest"}]}')

    assert (before, ollama.offers("a"), ollama.offers("b")) == (None, True, False)


def test_it_asks_for_what_it_does_not_know_and_no_more() -> None:
    ollama = provider(models={"a": "one", "b": "two", "*": "one"})
    ollama.catalogue(b'{"models":[{"name":"one","capabilities":["tools"]},{"name":"two"}]}')
    answers = {"/api/version": b'{"version":"0.12.6-rc1"}', "/api/show": b'{"capabilities":["vision"]}'}

    questions = ollama.questions()
    for request, read in questions:
        read(answers[request.target])

    assert [(request.method, request.target, request.body) for request, _ in questions] == [
        ("GET", "/api/version", b""),
        ("POST", "/api/show", b'{"model":"two"}'),
    ]
    assert (ollama.facts.version, ollama.facts.about("two").has("vision")) == ((0, 12, 6), True)
    assert ollama.questions() == []
    assert repr(ollama.facts) == "<Facts version=(0, 12, 6) models=2>"


@pytest.mark.parametrize(
    ("text", "version"),
    [("0.32.15", (0, 32, 15)), ("v0.5", (0, 5, 0)), ("0.0.0", None), ("dev", None), (None, None), (1, None)],
)
def test_a_version_is_its_leading_numbers(text: object, version: object) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize(
    ("name", "normal"),
    [("Llama3.2", "llama3.2:latest"), ("ns/M:7b", "ns/m:7b"), ("host:5000/m", "host:5000/m:latest")],
)
def test_names_are_compared_as_ollama_does(name: str, normal: str) -> None:
    assert normal_name(name) == normal


@pytest.mark.parametrize("prefix", ["chatcmpl-", "cmpl-", "call_", "resp_", "rs_", "msg_", "fc_"])
def test_ids_are_short_marked_and_new(prefix: str) -> None:
    first, second = mint_id(prefix), mint_id(prefix)

    assert first.startswith(f"{prefix}sntl")
    assert len(first) <= MAX_ID_CHARS
    assert first != second
