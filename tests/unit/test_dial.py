"""Where a base URL points, whom we trust, and what a failed connect is called."""

import errno
import socket
import ssl
from pathlib import Path

import pytest

from sentinel_proxy.errors import ConfigError, FailureKind
from sentinel_proxy.upstream.dial import connect_failure, default_tls, origin_of, verifying_tls


@pytest.mark.parametrize(
    ("url", "origin", "authority"),
    [
        ("https://api.openai.com/v1", ("api.openai.com", 443, True), "api.openai.com"),
        ("http://localhost:11434", ("localhost", 11434, False), "localhost:11434"),
        ("http://h:80", ("h", 80, False), "h"),
        ("https://h:80", ("h", 80, True), "h:80"),
        ("http://[::1]:8080/x", ("::1", 8080, False), "[::1]:8080"),
        ("https://bücher.example", ("xn--bcher-kva.example", 443, True), "xn--bcher-kva.example"),
    ],
    ids=["https", "port", "default-port", "foreign-port", "ipv6", "idna"],
)
def test_a_base_url_names_an_origin(url: str, origin: tuple[str, int, bool], authority: str) -> None:
    assert (*origin_of(url), origin_of(url).authority) == (*origin, authority)


def test_a_bad_base_url_is_refused_without_being_quoted() -> None:
    with pytest.raises(ConfigError) as caught:
        origin_of("ftp://user:secret@host")

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), FailureKind.CONNECT_TIMEOUT),
        (ssl.SSLCertVerificationError("bad"), FailureKind.CERTIFICATE),
        (ssl.SSLError("bad"), FailureKind.CONNECT),
        (socket.gaierror(-2, "unknown"), FailureKind.CONNECT),
        (UnicodeError("label"), FailureKind.CONNECT),
        (ConnectionRefusedError(), FailureKind.CONNECT),
        (ConnectionResetError(), FailureKind.CONNECT),
        (OSError(errno.ENETUNREACH, "unreachable"), FailureKind.CONNECT),
        (OSError(errno.EMFILE, "too many"), FailureKind.LOCAL),
        (OSError(errno.EADDRNOTAVAIL, "no ports"), FailureKind.LOCAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.value,
)
def test_every_failure_of_connecting_has_a_name(error: Exception, kind: FailureKind) -> None:
    assert connect_failure(error).kind is kind


def test_an_error_of_another_phase_is_not_given_a_name() -> None:
    with pytest.raises(TypeError):
        connect_failure(LookupError())


def test_the_default_context_verifies_and_is_built_once() -> None:
    context = default_tls()

    assert context is default_tls()
    assert context is not verifying_tls()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize("folder", [True, False], ids=["empty-folder", "no-folder"])
def test_without_trust_of_the_system_certifis_is_used(
    folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ssl.get_default_verify_paths()._replace(capath=str(tmp_path) if folder else None)  # type: ignore[arg-type]
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    monkeypatch.setattr(ssl, "create_default_context", lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    assert verifying_tls().cert_store_stats()["x509_ca"] > 50
