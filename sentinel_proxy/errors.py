"""
What can go wrong: one tree of errors, and one table of what follows from each failure.

`upstream` and `providers` name a failure once, as a `FailureKind`; everybody else looks up
what follows in `CONSEQUENCES`. What a caller is told, and with which status, is decided in
`api.errors` alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum


class SentinelError(Exception):
    """Base of everything we raise on purpose."""


class ConfigError(SentinelError):
    """
    The configuration cannot be used.

    Args:
        key: Dotted name of the key as a person wrote it (`providers[1].base_url`), or the
            name of the environment variable or file at fault.
        problem: What is wrong with its value and what would be right; never the value of a secret.
        source: The file that the key stands in; empty where there is none.
    """

    def __init__(self, key: str, problem: str, *, source: str = "") -> None:
        super().__init__(f"{source}: {key}: {problem}" if source else f"{key}: {problem}")
        self.key = key
        self.problem = problem
        self.source = source

    @property
    def mistakes(self) -> "tuple[ConfigError, ...]":
        """Every mistake that was found, at least one."""
        return (self,)


class ConfigErrors(ConfigError):
    """
    Several mistakes of one configuration, told at once; `str` gives one line each.

    Args:
        mistakes: At least one; `key`, `problem` and `source` are those of the first.
    """

    def __init__(self, mistakes: "Sequence[ConfigError]") -> None:
        first = mistakes[0]
        super().__init__(first.key, first.problem, source=first.source)
        self.args = ("\n".join(str(mistake) for mistake in mistakes),)
        self._mistakes = tuple(mistakes)

    @property
    def mistakes(self) -> tuple[ConfigError, ...]:
        """Every mistake that was found, in the order of the sections."""
        return self._mistakes


class CallerError(SentinelError):
    """
    The caller's request is wrong everywhere: nothing is sent upstream, nobody's vote is cast.

    Args:
        message: For the developer of the calling program; never quotes prompts.
        status: HTTP status to answer with.
        code: Machine-readable code of OpenAI's error object.
        param: Top-level field at fault, if one is.
    """

    def __init__(
        self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param


class FailureKind(StrEnum):
    """Our name for what went wrong with one attempt."""

    CALLER = "caller"  # the request is wrong everywhere; the upstream's answer goes back as it came
    CONFLICT = "conflict"  # 409: a lock conflict that a moment may solve
    UNSUPPORTED = "unsupported"  # right elsewhere, impossible at this provider
    CONTEXT_OVERFLOW = "context_overflow"  # longer than this model's window
    MODEL_NOT_FOUND = "model_not_found"  # this provider does not have the model
    CREDENTIAL = "credential"  # our key or account is refused
    QUOTA = "quota"  # our money at this provider is spent
    THROTTLED = "throttled"  # 429: busy with us, not broken
    OVERLOADED = "overloaded"  # 5xx: no capacity, or broken inside
    GATEWAY = "gateway"  # a CDN or gateway in front could not reach its origin
    CONNECT = "connect"  # DNS, TCP or TLS failed: nothing was sent
    CERTIFICATE = "certificate"  # the server's certificate does not verify
    CONNECT_TIMEOUT = "connect_timeout"  # no connection in time: nothing was sent
    RESET = "reset"  # the connection died before the answer began
    TIMEOUT = "timeout"  # the answer, or its next part, did not come in time
    PROTOCOL = "protocol"  # what came is not the API: HTML, bad JSON, a redirect, garbage
    EMPTY = "empty"  # a well-formed answer with nothing in it
    BAD_OUTPUT = "bad_output"  # the model wrote what its own server could not use
    TRUNCATED = "truncated"  # the answer ended, or broke, before it was complete
    LOCAL = "local"  # a limit of our own: this provider's connections are all in use


class Retry(Enum):
    """Whether another attempt at the same provider can help."""

    NEVER = "never"
    ALONE = "alone"  # only where no other provider is left to try
    ALWAYS = "always"


class Vote(Enum):
    """What an attempt says to the breaker."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"  # neither adds to the run of failures nor ends it


class Scope(Enum):
    """Whose breaker hears a failure when `breaker.scope` is "auto"."""

    PROVIDER = "provider"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Consequence:
    """What follows from one failure."""

    retry: Retry
    failover: bool
    vote: Vote
    scope: Scope = Scope.MODEL
    opens: bool = False  # trips the breaker at once, without waiting for the threshold


# One row a kind; the reasons are in docs/failures.md, which a test keeps equal to this table.
CONSEQUENCES: dict[FailureKind, Consequence] = {
    FailureKind.CALLER: Consequence(Retry.NEVER, False, Vote.NEUTRAL),
    FailureKind.CONFLICT: Consequence(Retry.ALWAYS, False, Vote.NEUTRAL),
    FailureKind.UNSUPPORTED: Consequence(Retry.NEVER, True, Vote.NEUTRAL),
    FailureKind.CONTEXT_OVERFLOW: Consequence(Retry.NEVER, True, Vote.NEUTRAL),
    FailureKind.MODEL_NOT_FOUND: Consequence(Retry.NEVER, True, Vote.NEUTRAL),
    FailureKind.CREDENTIAL: Consequence(Retry.NEVER, True, Vote.FAILURE, Scope.PROVIDER, opens=True),
    FailureKind.QUOTA: Consequence(Retry.NEVER, True, Vote.FAILURE, Scope.PROVIDER, opens=True),
    FailureKind.THROTTLED: Consequence(Retry.ALONE, True, Vote.NEUTRAL, Scope.PROVIDER),
    FailureKind.OVERLOADED: Consequence(Retry.ALWAYS, True, Vote.FAILURE),
    FailureKind.GATEWAY: Consequence(Retry.ALONE, True, Vote.FAILURE, Scope.PROVIDER),
    FailureKind.CONNECT: Consequence(Retry.ALONE, True, Vote.FAILURE, Scope.PROVIDER),
    FailureKind.CERTIFICATE: Consequence(Retry.NEVER, True, Vote.FAILURE, Scope.PROVIDER, opens=True),
    FailureKind.CONNECT_TIMEOUT: Consequence(Retry.NEVER, True, Vote.FAILURE, Scope.PROVIDER),
    FailureKind.RESET: Consequence(Retry.ALONE, True, Vote.FAILURE, Scope.PROVIDER),
    FailureKind.TIMEOUT: Consequence(Retry.NEVER, True, Vote.FAILURE),
    FailureKind.PROTOCOL: Consequence(Retry.NEVER, True, Vote.FAILURE),
    FailureKind.EMPTY: Consequence(Retry.NEVER, True, Vote.FAILURE),
    FailureKind.BAD_OUTPUT: Consequence(Retry.NEVER, True, Vote.NEUTRAL),
    FailureKind.TRUNCATED: Consequence(Retry.NEVER, True, Vote.FAILURE),
    FailureKind.LOCAL: Consequence(Retry.NEVER, True, Vote.NEUTRAL),
}


class UpstreamError(SentinelError):
    """
    One attempt failed.

    The message is ours or the upstream's own words about the failure; it may be shown to the
    caller, so it never holds an upstream's address, a key or a prompt.

    Args:
        kind: Decides everything that follows (`CONSEQUENCES`).
        message: One sentence for people.
        status: The upstream's HTTP status, if the failure came as one.
        code: The code of its error object (`context_length_exceeded`), or ours if it gave none.
        type: The type of its error object.
        param: The field its error object names.
        retry_after: Seconds the upstream asked us to wait; never negative.
        body: The error body as it came, for failures that go back to the caller unchanged.
        headers: The upstream's response headers, for the same purpose.
        personal: It concerns the caller's own account at the upstream, since the caller's own
            key was sent: it says nothing about anybody else's calls.
    """

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        type: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        body: bytes | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        personal: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status
        self.code = code
        self.type = type
        self.param = param
        self.retry_after = retry_after
        self.body = body
        self.headers = headers
        self.personal = personal

    @property
    def consequence(self) -> Consequence:
        """What follows from this failure."""
        return CONSEQUENCES[self.kind]

    @property
    def label(self) -> str:
        """How the trail names it: the status where there is one ("503"), else the kind ("timeout")."""
        if self.status is not None and self.status >= 300:
            return str(self.status)
        return "timeout" if self.kind is FailureKind.CONNECT_TIMEOUT else self.kind.value

    def __repr__(self) -> str:
        return f"<UpstreamError {self.kind.value} status={self.status} code={self.code!r}>"


class BreakerOpen(SentinelError):
    """
    A breaker refused the attempt; nothing was sent.

    Args:
        retry_after: Seconds until it will admit a trial; never negative.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"resting for another {retry_after:.1f} s")
        self.retry_after = retry_after


class NoReply(SentinelError):
    """
    No provider gave a reply: the call has failed and nothing of an answer was sent.

    Args:
        failures: What every provider of the chain said, in the order of asking: the last error
            of each attempt, or why it was passed by.
        deadline_exceeded: The call's time was used up before everyone was tried.
    """

    def __init__(
        self, failures: Sequence["UpstreamError | BreakerOpen"] = (), *, deadline_exceeded: bool = False
    ) -> None:
        super().__init__("the deadline passed" if deadline_exceeded else "no provider answered")
        self.failures = failures
        self.deadline_exceeded = deadline_exceeded


def forget_frames(error: BaseException) -> None:
    """
    Let go of the frames that *error* came through, and of the errors it came from.

    An error that is kept, or that somebody keeps whom its frames know, is a cycle: request, answer
    and connection would stay until the garbage collector comes by, which it rarely does here. For
    whoever has caught an error for good; `error` itself stays as it is.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
