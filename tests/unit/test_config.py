"""What a person can write into the configuration, and what they are told about it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from sentinel_proxy.config import Config, Loaded, ProviderConfig, as_public_dict, effective, load
from sentinel_proxy.errors import ConfigError, ConfigErrors

Write = Callable[[str], Path]

OPENAI = """
[[providers]]
name = "primary"
kind = "openai"
base_url = "https://llm.example/v1"
"""
OLLAMA = """
[[providers]]
name = "local"
kind = "ollama"
base_url = "http://localhost:11434"
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a configuration file and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "sentinel.toml"
        path.write_text(text)
        return path

    return write


def refusal(path: Path | None, environ: dict[str, str] | None = None, **flags: str | int) -> ConfigError:
    """Load what cannot be loaded; flags are written without their dashes."""
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {}, {f"--{name}": value for name, value in flags.items()})
    return caught.value


def about(loaded: Loaded, word: str) -> list[str]:
    """Return the notes that mention *word*."""
    return [note for note in loaded.notes if word in note]


class TestWithoutAFile:
    def test_the_environment_alone_configures_openai_then_ollama(self) -> None:
        config = load(None, {}).config

        openai, ollama = config.providers
        assert (openai.name, openai.kind, openai.base_url) == (
            "openai",
            "openai",
            "https://api.openai.com/v1",
        )
        assert (ollama.name, ollama.kind, ollama.base_url) == ("ollama", "ollama", "http://localhost:11434")
        assert ollama.models == {"*": "llama3.2"}
        assert ollama.timeouts.first_token == 300
        assert config.default_model == "gpt-4o-mini"

    def test_the_known_variables_override_their_keys(self) -> None:
        environ = {
            "OPENAI_API_KEY": "sk-openai",
            "OPENAI_BASE_URL": "https://eu.example/v1/",
            "OPENAI_MODEL": "gpt-4o",
            "OLLAMA_BASE_URL": "http://gpu:11434",
            "OLLAMA_MODEL": "qwen3",
            "CIRCUIT_BREAKER_FAILURE_THRESHOLD": "7",
            "CIRCUIT_BREAKER_RECOVERY_TIMEOUT": "12.5",
            "HEALTH_CHECK_INTERVAL_SECONDS": "20",
            "RATE_LIMIT_REQUESTS": "0",
            "RATE_LIMIT_WINDOW_SECONDS": "1e1",
            "SENTINEL_ADMIN_TOKEN": "admin",
            "SENTINEL_HOST": "0.0.0.0",
            "SENTINEL_PORT": "9000",
            "REDIS_URL": "sqlite://",
        }

        config = load(None, environ).config

        openai, ollama = config.providers
        assert openai.api_key == SecretStr("sk-openai")
        assert openai.base_url == "https://eu.example/v1"
        assert config.default_model == "gpt-4o"
        assert (ollama.base_url, ollama.models) == ("http://gpu:11434", {"*": "qwen3"})
        assert (config.breaker.failure_threshold, config.breaker.recovery_timeout) == (7, 12.5)
        assert config.health.interval == 20
        assert (config.rate_limit.requests, config.rate_limit.window) == (0, 10)
        assert config.admin.token == SecretStr("admin")
        assert (config.server.host, config.server.port) == ("0.0.0.0", 9000)
        assert config.state.url == "sqlite://"

    @pytest.mark.parametrize("blank", ["", " ", "\n"], ids=["empty", "space", "line end"])
    def test_a_blank_variable_counts_as_unset(self, blank: str) -> None:
        environ = {
            "OPENAI_API_KEY": blank,
            "SENTINEL_PORT": blank,
            "APP_ENV": blank,
            "SENTINEL_CONFIG": blank,
        }

        assert load(None, environ) == load(None, {})

    def test_the_line_end_of_a_key_read_from_a_file_is_dropped(self) -> None:
        config = load(None, {"OPENAI_API_KEY": "sk-1\n"}).config

        assert config.providers[0].api_key == SecretStr("sk-1")

    def test_only_the_given_environment_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SENTINEL_PORT", "1")

        assert load(None, {}).config.server.port == 8000

    @pytest.mark.parametrize(
        ("app_env", "format"), [("development", "console"), ("staging", "json"), ("production", "json")]
    )
    def test_app_env_decides_how_the_log_looks(self, app_env: str, format: str) -> None:
        assert load(None, {"APP_ENV": app_env}).config.log.format == format

    def test_app_env_leaves_alone_what_the_file_says(self, write: Write) -> None:
        path = write('[log]\nformat = "json"')

        assert load(path, {"APP_ENV": "development"}).config.log.format == "json"

    @pytest.mark.parametrize(
        ("environ", "said"),
        [
            (
                {"SENTINEL_PORT": "http"},
                "SENTINEL_PORT: must be a whole number, not text (it sets server.port)",
            ),
            (
                {"SENTINEL_PORT": "70000"},
                "SENTINEL_PORT: must be at most 65535, not 70000 (it sets server.port)",
            ),
            ({"APP_ENV": "prod"}, 'APP_ENV: must be "development", "staging" or "production"'),
            (
                {"OLLAMA_BASE_URL": "gpu:11434"},
                'OLLAMA_BASE_URL: must begin with "http://" or "https://" (it sets providers[1].base_url)',
            ),
            (
                {"RATE_LIMIT_REQUESTS": "1.5"},
                "RATE_LIMIT_REQUESTS: must be a whole number, not 1.5 (it sets rate_limit.requests)",
            ),
            (
                {"OPENAI_MODEL": "\udcff"},
                "OPENAI_MODEL: is not Unicode text (it sets default_model)",
            ),
        ],
        ids=["not a number", "too large", "app env", "base url", "fraction", "bytes"],
    )
    def test_a_bad_value_of_a_variable_is_told_under_the_name_of_the_variable(
        self, environ: dict[str, str], said: str
    ) -> None:
        assert str(refusal(None, environ)) == said

    def test_one_variable_is_enough_to_rest_longer_than_the_ceiling(self) -> None:
        loaded = load(None, {"CIRCUIT_BREAKER_RECOVERY_TIMEOUT": "400"})

        assert loaded.config.breaker.max_recovery_timeout == 400
        assert about(loaded, "breaker.max_recovery_timeout follows breaker.recovery_timeout")


class TestFile:
    def test_the_file_of_sentinel_config_is_read_where_none_is_given(self, write: Write) -> None:
        path = write("[server]\nport = 1234")

        loaded = load(None, {"SENTINEL_CONFIG": str(path)})

        assert (loaded.config.server.port, loaded.path) == (1234, path)

    def test_a_given_file_goes_before_sentinel_config(self, write: Write) -> None:
        loaded = load(write("[server]\nport = 1234"), {"SENTINEL_CONFIG": "/nowhere.toml"})

        assert loaded.config.server.port == 1234

    def test_the_environment_goes_before_the_file_and_flags_before_both(self, write: Write) -> None:
        path = write('[server]\nhost = "10.0.0.1"\nport = 1\ndrain_seconds = 3')

        server = load(path, {"SENTINEL_PORT": "2", "SENTINEL_HOST": "10.0.0.2"}, {"--port": 3}).config.server

        assert (server.host, server.port, server.drain_seconds) == ("10.0.0.2", 3, 3)

    def test_a_flag_that_is_not_given_changes_nothing(self) -> None:
        assert load(None, {}, {"--host": None, "--port": None}) == load(None, {})

    def test_a_file_without_providers_has_the_chain_of_the_environment(self, write: Write) -> None:
        loaded = load(write("[server]\nport = 1"), {"OPENAI_API_KEY": "sk-1"})

        assert loaded.config.providers == load(None, {"OPENAI_API_KEY": "sk-1"}).config.providers
        assert about(loaded, "openai, then ollama")

    def test_an_empty_list_of_providers_is_for_plugins(self, write: Write) -> None:
        loaded = load(write("providers = []"), {})

        assert loaded.config.providers == ()
        assert about(loaded, "only plugins can answer")

    @pytest.mark.parametrize(
        ("url", "workers"),
        [
            ("sqlite://", 1),
            ("sqlite:///var/lib/state.db", 1),
            ("redis://redis:6379/0", 4),
            ("rediss://redis", 4),
            ("unix:///run/redis.sock?db=0", 4),
            ("redis+sentinel://a:26379,b:26379/0?service=mymaster", 4),
            ("rediss+cluster://a:7000,b:7000", 4),
        ],
        ids=["memory", "file", "redis", "redis with TLS", "socket", "sentinels", "cluster"],
    )
    def test_state_lives_where_it_is_said_to(self, write: Write, url: str, workers: int) -> None:
        config = load(write(f'[server]\nworkers = {workers}\n[state]\nurl = "{url}"'), {}).config

        assert (config.state.url, config.server.workers) == (url, workers)

    def test_whole_numbers_serve_where_fractions_may_stand(self, write: Write) -> None:
        assert load(write("[timeouts]\nconnect = 7"), {}).config.timeouts.connect == 7

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (
                b"[server\n",
                "is not TOML: Expected ']' at the end of a table declaration (at line 1, column 8)",
            ),
            (b"port = \xff", "is not UTF-8 text (at byte 7)"),
            (b"x = " + b"[" * 5000, "is nested too deeply"),
            (b"x = " + b"9" * 5000, "is not TOML: "),
        ],
        ids=["syntax", "encoding", "nesting", "endless number"],
    )
    def test_what_is_not_toml_is_told_under_the_name_of_the_file(
        self, tmp_path: Path, content: bytes, said: str
    ) -> None:
        path = tmp_path / "broken.toml"
        path.write_bytes(content)

        error = refusal(path)

        assert error.key == str(path)
        assert error.problem.startswith(said)

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "absent.toml"

        assert str(refusal(None, {"SENTINEL_CONFIG": str(path)})) == f"{path}: there is no such file"

    def test_what_cannot_be_read_is_named_with_the_reason(self, tmp_path: Path) -> None:
        assert str(refusal(tmp_path)) == f"{tmp_path}: cannot be read: Is a directory"


class TestReferences:
    def test_a_text_is_read_from_the_variable_it_names(self, write: Write) -> None:
        path = write(
            '[server]\nport = "env:PORT"\ntrusted_proxies = ["env:LB"]\n'
            + OLLAMA
            + 'keep_alive = "env:KEEP"\nmodels = { a = "env:MODEL" }'
        )

        config = load(path, {"PORT": "8123", "LB": "10.0.0.1", "KEEP": "-1", "MODEL": "123"}).config

        assert (config.server.port, config.server.trusted_proxies) == (8123, ("10.0.0.1",))
        assert (config.providers[0].keep_alive, config.providers[0].models) == (-1, {"a": "123"})

    def test_where_the_variable_is_not_set_the_key_counts_as_absent_and_a_note_says_so(
        self, write: Write
    ) -> None:
        loaded = load(write('[server]\nport = "env:PORT"\ntrusted_proxies = ["env:LB", "10.0.0.1"]'), {})

        assert loaded.config.server.port == 8000
        assert loaded.config.server.trusted_proxies == ("10.0.0.1",)
        assert about(loaded, "PORT") == ["no PORT: server.port, which reads it, counts as absent"]

    def test_a_bad_value_of_a_named_variable_is_told_under_its_name(self, write: Write) -> None:
        error = refusal(write('[server]\nport = "env:PORT"'), {"PORT": "http"})

        assert str(error) == "PORT: must be a whole number, not text (it sets server.port)"

    @pytest.mark.parametrize("text", ["env:", "env: A", "env:a/b"])
    def test_a_reference_names_a_variable(self, write: Write, text: str) -> None:
        error = refusal(write(f'[admin]\ntoken = "{text}"'))

        assert error.problem == 'names no variable: write "env:NAME"'

    def test_a_client_whose_key_is_not_set_cannot_be_let_in(self, write: Write) -> None:
        error = refusal(write('[[clients]]\nname = "web"\nkey = "env:WEB_KEY"'))

        assert error.key == "clients[0].key"
        assert error.problem == "reads WEB_KEY, which is not set; a client without a key cannot be let in"

    def test_a_reference_below_an_unknown_key_is_one_mistake(self, write: Write) -> None:
        error = refusal(write('[xyz]\na = { b = "env:PORT" }'), {"PORT": "1"})

        assert [mistake.key for mistake in error.mistakes] == ["xyz"]

    def test_a_required_key_whose_variable_is_not_set_is_missing(self, write: Write) -> None:
        error = refusal(write('[[providers]]\nname = "a"\nkind = "openai"\nbase_url = "env:URL"'))

        assert error.problem == "reads URL, which is not set, and has no default"


class TestWhichProvider:
    def test_openai_variables_speak_of_the_first_provider_of_that_kind(self, write: Write) -> None:
        path = write(OLLAMA + OPENAI + OPENAI.replace("primary", "second"))

        config = load(path, {"OPENAI_API_KEY": "sk-1", "OPENAI_BASE_URL": "http://other/v1"}).config

        assert [provider.api_key for provider in config.providers] == [None, SecretStr("sk-1"), None]
        assert [provider.base_url for provider in config.providers][1:] == [
            "http://other/v1",
            "https://llm.example/v1",
        ]

    def test_openai_variables_speak_of_the_provider_that_reads_the_openai_key(self, write: Write) -> None:
        second = OPENAI.replace("primary", "second") + 'api_key = "env:OPENAI_API_KEY"'
        path = write(OPENAI + 'api_key = "env:GROQ_API_KEY"' + second)

        config = load(path, {"OPENAI_API_KEY": "sk-1", "GROQ_API_KEY": "gsk"}).config

        assert [provider.api_key for provider in config.providers] == [SecretStr("gsk"), SecretStr("sk-1")]

    @pytest.mark.parametrize("groq", [{}, {"GROQ_API_KEY": "gsk"}], ids=["unset", "set"])
    def test_the_openai_key_is_never_given_to_a_provider_that_reads_another_one(
        self, write: Write, groq: dict[str, str]
    ) -> None:
        path = write(OPENAI + 'api_key = "env:GROQ_API_KEY"')

        loaded = load(path, {"OPENAI_API_KEY": "sk-1", "OPENAI_BASE_URL": "http://other/v1", **groq})

        (provider,) = loaded.config.providers
        assert provider.base_url == "https://llm.example/v1"
        assert provider.api_key != SecretStr("sk-1")
        assert about(loaded, "OPENAI_API_KEY is ignored: providers[0].api_key reads GROQ_API_KEY")
        assert about(loaded, "OPENAI_BASE_URL is ignored")

    def test_variables_of_a_kind_that_the_file_lacks_are_ignored_with_a_note(self, write: Write) -> None:
        loaded = load(write(OPENAI), {"OLLAMA_MODEL": "qwen3"})

        assert loaded.config.providers[0].models == {}
        assert about(loaded, 'OLLAMA_MODEL is ignored: no provider of kind "ollama" is configured')

    def test_ollama_model_serves_every_name_that_the_file_does_not_map(self, write: Write) -> None:
        path = write(OLLAMA + 'models = { "gpt-4o" = "big", "*" = "small" }')

        config = load(path, {"OLLAMA_MODEL": "qwen3"}).config

        assert config.providers[0].models == {"gpt-4o": "big", "*": "qwen3"}


class TestWhoseKey:
    def test_without_a_key_of_its_own_the_first_openai_provider_gets_the_callers(self) -> None:
        loaded = load(None, {})

        assert loaded.config.caller_key_provider == "openai"
        assert about(loaded, "OPENAI_API_KEY") == [
            "no OPENAI_API_KEY: callers' own keys are passed on to openai; "
            "calls without one are served by ollama"
        ]

    def test_with_a_key_of_its_own_it_gets_that(self) -> None:
        loaded = load(None, {"OPENAI_API_KEY": "sk-1"})

        assert loaded.config.caller_key_provider is None
        assert not about(loaded, "key")

    def test_keys_of_listed_clients_are_never_passed_on(self, write: Write) -> None:
        loaded = load(write(OPENAI + '[[clients]]\nname = "web"\nkey = "k"'), {})

        assert loaded.config.caller_key_provider is None
        assert about(loaded, "primary is called without a key")

    def test_only_the_first_of_its_kind_gets_them(self, write: Write) -> None:
        path = write(OPENAI + 'api_key = "k"' + OPENAI.replace("primary", "second"))

        assert load(path, {}).config.caller_key_provider is None

    def test_a_chain_of_ollamas_gets_none(self, write: Write) -> None:
        assert load(write(OLLAMA), {}).config.caller_key_provider is None

    def test_a_chain_of_one_says_that_calls_without_a_key_fail(self, write: Write) -> None:
        assert about(load(write(OPENAI), {}), "calls without one cannot be served")


MISTAKES = [
    ("unknown key", "[server]\nprot = 1", "server.prot", "is not a key; did you mean server.port?"),
    ("unknown table", "[sever]\nport = 1", "sever", "is not a key; did you mean server?"),
    ("key of another table", "port = 1", "port", "is not a key; did you mean server.port?"),
    (
        "timeout of the whole call",
        OPENAI + "[providers.timeouts]\ntotal = 1",
        "providers[0].timeouts.total",
        "is not a key; did you mean timeouts.total?",
    ),
    (
        "key of the top",
        '[log]\ndefault_model = "a"',
        "log.default_model",
        "is not a key; did you mean default_model, which stands above the first table?",
    ),
    ("nothing like it", "[rescue]\nxyz = 1", "rescue.xyz", "is not a key; rescue knows mode"),
    ("text for a number", '[server]\nport = "30"', "server.port", "must be a whole number: write 30 without"),
    ("words for a number", '[health]\ntimeout = "x"', "health.timeout", "must be a number, not text"),
    ("fraction", "[retry]\nattempts = 1.5", "retry.attempts", "must be a whole number, not 1.5"),
    ("truth for a number", "[retry]\nattempts = true", "retry.attempts", "must be a whole number, not true"),
    ("text for truth", '[hedge]\nenabled = "true"', "hedge.enabled", "must be true or false: write true"),
    ("number for truth", "[hedge]\nenabled = 1", "hedge.enabled", "must be true or false, not 1"),
    ("too small", "[server]\nworkers = 0", "server.workers", "must be at least 1, not 0"),
    ("not positive", "[timeouts]\nidle = 0", "timeouts.idle", "must be more than 0, not 0"),
    ("too large", "[retry]\nbudget = 1.5", "retry.budget", "must be at most 1, not 1.5"),
    ("infinite", "[timeouts]\nidle = inf", "timeouts.idle", "must be a finite number"),
    ("date", "[timeouts]\nidle = 2024-01-01", "timeouts.idle", "must be a number, not a date or time"),
    ("number for text", "[server]\nhost = 1", "server.host", "must be text in quotes, not 1"),
    ("braces", '[state]\nnamespace = "{}x"', "state.namespace", "must not have braces in it"),
    ("empty text", '[state]\nnamespace = ""', "state.namespace", "must not be empty"),
    (
        "one of few",
        '[log]\nlevel = "warn"',
        "log.level",
        'must be "debug", "info", "warning" or "error"; did you mean "warning"?',
    ),
    (
        "number for one of few",
        "[log]\nlevel = 1",
        "log.level",
        'must be "debug", "info", "warning" or "error"',
    ),
    ("no table", "server = 1", "server", "must be a table: [server]"),
    ("list for a table", "[[server]]\nport = 1", "server", "must be a table: [server]"),
    (
        "no list of tables",
        "[providers]\nname = 1",
        "providers",
        "must be a list of tables: write [[providers]]",
    ),
    ("list of texts", 'clients = ["web"]', "clients[0]", "must be a table: [[clients]]"),
    ("no list", '[server]\ntrusted_proxies = "::1"', "server.trusted_proxies", "must be a list, not text"),
    (
        "no network",
        '[server]\ntrusted_proxies = ["lb"]',
        "server.trusted_proxies[0]",
        "must be an IP address",
    ),
    (
        "stray bits",
        '[server]\ntrusted_proxies = ["10.1.0.0/8"]',
        "server.trusted_proxies[0]",
        "must be an IP address or a network",
    ),
    ("no map", OLLAMA + 'models = "x"', "providers[0].models", "must be a table of texts, not text"),
    ("number in a map", OLLAMA + 'models = {"*" = 1}', 'providers[0].models."*"', "must be text in quotes"),
    ("missing key", OPENAI + "[[clients]]\nkey = 'k'", "clients[0].name", "is missing; it has no default"),
    (
        "unknown kind",
        OPENAI.replace('"openai"', '"opnai"'),
        "providers[0].kind",
        'must be "openai" or "ollama"; did you mean "openai"?',
    ),
    (
        "name of a provider",
        OPENAI.replace("primary", "my provider"),
        "providers[0].name",
        "must be 1 to 64 letters",
    ),
    ("same provider", OPENAI + OPENAI, "providers[1].name", "must differ from providers[0].name"),
    (
        "key of another kind",
        OPENAI + "num_ctx = 1",
        "providers[0].num_ctx",
        'is a key of providers of kind "ollama"; this one is of kind "openai"',
    ),
    ("keep alive", OLLAMA + 'keep_alive = "5"', "providers[0].keep_alive", 'must be a duration such as "5m"'),
    ("no keep alive", OLLAMA + "keep_alive = true", "providers[0].keep_alive", "must be a duration"),
    ("key with a space", OPENAI + 'api_key = "a b"', "providers[0].api_key", "must be printable ASCII"),
    ("empty key", '[admin]\ntoken = ""', "admin.token", "must not be empty; leave the key out instead"),
    (
        "same client",
        '[[clients]]\nname = "a"\nkey = "x"\n[[clients]]\nname = "a"\nkey = "y"',
        "clients[1].name",
        "must differ from clients[0].name",
    ),
    (
        "same client key",
        '[[clients]]\nname = "a"\nkey = "x"\n[[clients]]\nname = "b"\nkey = "x"',
        "clients[1].key",
        "must differ from clients[0].key",
    ),
    (
        "ceiling of the backoff",
        "[retry]\nbackoff = 3\nmax_backoff = 2",
        "retry.max_backoff",
        "must be at least retry.backoff, which is 3, not 2",
    ),
    (
        "ceiling of the rest",
        "[breaker]\nmax_recovery_timeout = 2",
        "breaker.max_recovery_timeout",
        "must be at least breaker.recovery_timeout, which is 30, not 2",
    ),
    ("no end of workers", f"[server]\nworkers = {'9' * 400}", "server.workers", "must be 1 where"),
    (
        "no end of a rest",
        f"[breaker]\nrecovery_timeout = {'9' * 200}\nmax_recovery_timeout = 2",
        "breaker.max_recovery_timeout",
        "must be at least breaker.recovery_timeout, which is a number, not 2",
    ),
    ("workers", "[server]\nworkers = 2", "server.workers", "must be 1 where state.url is not a Redis"),
    (
        "workers of one file",
        '[server]\nworkers = 2\n[state]\nurl = "sqlite:///var/lib/state.db"',
        "server.workers",
        "must be 1 where state.url is not a Redis",
    ),
    ("state scheme", '[state]\nurl = "postgres://db"', "state.url", 'must be "sqlite://" (in memory)'),
    ("state path", '[state]\nurl = "sqlite://state.db"', "state.url", 'must be "sqlite://" (in memory) or'),
    ("state host", '[state]\nurl = "redis://"', "state.url", "must name a host and a port"),
    ("state port", '[state]\nurl = "redis://a:b"', "state.url", "must name a host and a port"),
]


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "key", "said"), [case[1:] for case in MISTAKES], ids=[case[0] for case in MISTAKES]
    )
    def test_a_mistake_names_the_key_and_what_would_be_right(
        self, write: Write, text: str, key: str, said: str
    ) -> None:
        path = write(text)

        error = refusal(path)

        assert (error.key, error.source, len(error.mistakes)) == (key, str(path), 1)
        assert error.problem.startswith(said)
        assert str(error) == f"{path}: {key}: {error.problem}"

    @pytest.mark.parametrize(
        ("base_url", "said"),
        [
            ("localhost:11434", 'must begin with "http://" or "https://"'),
            ("ftp://llm.example", 'must begin with "http://" or "https://"'),
            ("http://", "must name a host"),
            ("http://:80/v1", "must name a host"),
            ("http://a:0", "must name a host"),
            ("http://a:port", "is not a URL"),
            ("http://[::1", "is not a URL"),
            ("http://me:secret@llm.example", "must not carry credentials"),
            ("http://llm.example/v1?version=1", "must end with its path"),
            ("http://llm.example/v1#top", "must end with its path"),
            ("http://llm.example/v1?", "must end with its path"),
            ("http://llm.example /v1", "must be printable ASCII"),
            ("http://mädchen.example", "must be printable ASCII"),
        ],
    )
    def test_a_base_url_is_one_that_paths_can_be_appended_to(
        self, write: Write, base_url: str, said: str
    ) -> None:
        error = refusal(write(OPENAI.replace("https://llm.example/v1", base_url)))

        assert error.key == "providers[0].base_url"
        assert error.problem.startswith(said)
        assert "secret" not in str(error)

    @pytest.mark.parametrize(
        ("written", "kept"),
        [
            ("http://a/v1/", "http://a/v1"),
            ("http://a//", "http://a"),
            ("HTTPS://a:8443", "HTTPS://a:8443"),
            ("http://[::1]:80", "http://[::1]:80"),
        ],
    )
    def test_trailing_slashes_of_a_base_url_are_dropped(self, written: str, kept: str) -> None:
        assert ProviderConfig(name="a", kind="openai", base_url=written).base_url == kept

    @pytest.mark.parametrize("keep_alive", ["5m", "1h30m", "-1s", "1.5h", 300, 0, -1])
    def test_keep_alive_is_what_ollama_reads(self, keep_alive: str | int) -> None:
        config = ProviderConfig(name="a", kind="ollama", base_url="http://a", keep_alive=keep_alive)

        assert config.keep_alive == keep_alive

    def test_all_mistakes_are_told_at_once(self, write: Write) -> None:
        path = write('[server]\nport = -1\nworkers = 2\n[log]\nlevle = "info"\n' + OPENAI + OPENAI)

        error = refusal(path, {"APP_ENV": "prod"})

        assert isinstance(error, ConfigErrors)
        assert [mistake.key for mistake in error.mistakes] == [
            "APP_ENV",
            "server.port",
            "log.levle",
            "providers[1].name",
            "server.workers",
        ]
        assert str(error).splitlines() == [str(mistake) for mistake in error.mistakes]

    def test_a_variable_for_a_key_of_a_table_that_is_none_adds_no_second_mistake(self, write: Write) -> None:
        error = refusal(
            write("server = 1\nrate_limit = []"), {"SENTINEL_PORT": "1", "RATE_LIMIT_REQUESTS": "1"}
        )

        assert [mistake.key for mistake in error.mistakes] == ["server", "rate_limit"]

    @pytest.mark.parametrize("providers", ["1", "[1]", "{ a = 1 }", '[{ kind = ["openai"] }]'])
    def test_variables_find_no_provider_in_what_is_none(self, write: Write, providers: str) -> None:
        error = refusal(write(f"providers = {providers}"), {"OPENAI_API_KEY": "sk-1"})

        assert all(mistake.key.startswith("providers") for mistake in error.mistakes)

    def test_a_flag_is_named_as_it_was_typed(self) -> None:
        assert (
            str(refusal(None, port=70000)) == "--port: must be at most 65535, not 70000 (it sets server.port)"
        )
        assert refusal(None, workers=2).key == "--workers"

    def test_two_mistakes_of_variables_keep_their_names(self) -> None:
        error = refusal(None, {"SENTINEL_PORT": "x", "RATE_LIMIT_REQUESTS": "-1"})

        assert [mistake.key for mistake in error.mistakes] == ["SENTINEL_PORT", "RATE_LIMIT_REQUESTS"]


class TestShowing:
    @pytest.fixture
    def config(self, write: Write) -> Config:
        path = write(
            OPENAI
            + OLLAMA
            + '[[clients]]\nname = "web"\nkey = "env:WEB_KEY"\n[retry]\nbackoff = 0.5\n'
            + '[server]\ntrusted_proxies = ["10.0.0.0/8", "::1"]'
        )
        environ = {"OPENAI_API_KEY": "sk-1", "WEB_KEY": "web-1", "OLLAMA_MODEL": "qwen3"}
        return load(path, environ, {"--port": 9000}).config

    def test_the_effective_configuration_says_what_came_from_where(self, config: Config) -> None:
        lines = effective(config).splitlines()

        assert "port = 9000  # --port" in lines
        assert 'api_key = "****"  # OPENAI_API_KEY' in lines
        assert 'key = "****"  # WEB_KEY' in lines
        assert 'models = { "*" = "qwen3" }  # OLLAMA_MODEL' in lines
        assert "backoff = 0.5" in lines
        assert 'trusted_proxies = ["10.0.0.0/8", "::1"]' in lines
        assert "# token is not set" in lines

    def test_the_public_dict_has_every_key_and_no_secret(self, config: Config) -> None:
        public = as_public_dict(config)

        assert set(public) == set(Config.model_fields)
        assert public["providers"][0]["api_key"] == "****"
        assert public["providers"][1]["api_key"] is None
        assert public["clients"] == [{"name": "web", "key": "****", "requests": None}]
        assert public["server"]["trusted_proxies"] == ["10.0.0.0/8", "::1"]

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("redis://me:p@ss@redis:6379/0", "redis://****@redis:6379/0"),
            ("redis://redis/0?password=p@ss&db=1", "redis://redis/0?password=****"),
            ("redis://me:p@redis/0?password=p%40ss", "redis://****@redis/0?password=****"),
            ("redis://redis:6379/0", "redis://redis:6379/0"),
            (
                "redis+sentinel://me:p@ss@a:1,b:2/0?service=mine&sentinel_password=word",
                "redis+sentinel://****@a:1,b:2/0?service=mine&sentinel_password=****",
            ),
            ("rediss://redis?ssl_password=p@ss", "rediss://redis?ssl_password=****"),
        ],
        ids=["before the host", "in the query", "twice", "none", "of sentinels", "of a key file"],
    )
    def test_the_password_of_the_state_is_masked(self, url: str, shown: str) -> None:
        config = Config.model_validate({"state": {"url": url}})

        assert as_public_dict(config)["state"]["url"] == shown
        assert f'url = "{shown}"' in effective(config)
        assert url not in repr(config)

    def test_a_configuration_is_frozen(self, config: Config) -> None:
        with pytest.raises(ValidationError):
            config.server.port = 1

        assert config.server.port == 9000
