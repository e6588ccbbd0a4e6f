"""What holds for every configuration: no secret gets out, no mistake escapes, nothing is lost in print."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.config import Config, Loaded, as_public_dict, effective, load
from sentinel_proxy.config.environment import SETS
from sentinel_proxy.config.mistakes import every_key
from sentinel_proxy.errors import ConfigError

KEYS = every_key()
TABLES = sorted({key.rpartition(".")[0] for key in KEYS} - {"", "providers.timeouts"})
LISTS = {"providers", "clients"}

# Its ends keep a secret from being a word of ours by chance, and betray a mask that shows an end.
HEAD, TAIL = "Zq~7", "~9Xw"
SECRETS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E)).map(lambda text: HEAD + text + TAIL)
# Every type that TOML has, right and wrong, at and beyond the edges.
LITERALS = st.one_of(
    st.integers().map(str),
    st.sampled_from(["9" * 400, "0", "-1", "0.5", "1e400", "-1e-400", "inf", "nan", "true", "1979-05-27"]),
    st.sampled_from(["07:32:00", "[]", "[1]", '["a"]', "[{}]", "{}", "{ a = 1 }", '{ "*" = "b" }', '""']),
    st.sampled_from(['"openai"', '"ollama"', '"http://a/v1/"', '"redis://a"', '"env:A"', '"env:"', '"1"']),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: not text.startswith("env:")
)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
FLOATS = st.floats(0.001, 1) | st.just(1)


def loaded(text: str, environ: Mapping[str, str] | None = None) -> Loaded:
    """Load a file that holds *text*."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "sentinel.toml"
        path.write_text(text, newline="")
        return load(path, environ or {})


def basic(text: str) -> str:
    """Write *text* as a string of TOML, every character by its number."""
    return '"' + "".join(f"\\U{ord(character):08x}" for character in text) + '"'


def assignments(table: str) -> st.SearchStrategy[str]:
    """Any keys of *table*, and one of nobody's, with any values."""
    names = [key.rpartition(".")[2] for key in KEYS if key.rpartition(".")[0] == table]
    values = st.dictionaries(st.sampled_from([*names, "timeouts", "xyz"]), LITERALS)
    return values.map(lambda pairs: "\n".join(f"{name} = {literal}" for name, literal in pairs.items()))


def header(table: str) -> str:
    return f"[[{table}]]" if table in LISTS else f"[{table}]"


@given(data=st.data())
def test_any_file_is_a_configuration_or_a_mistake_in_our_words(data: st.DataObject) -> None:
    tables = data.draw(st.lists(st.sampled_from(TABLES), unique=True))
    text = "\n".join(f"{header(table)}\n{data.draw(assignments(table))}" for table in tables)
    environ = data.draw(st.dictionaries(st.sampled_from([*SETS, "A", "APP_ENV"]), st.text(max_size=5)))

    try:
        said = effective(loaded(text, environ).config)
    except ConfigError as error:
        said = str(error)

    assert said
    assert "Input should" not in said
    assert "pydantic" not in said


@given(secret=SECRETS)
def test_no_secret_is_in_anything_that_is_shown(secret: str) -> None:
    text = f"""
    [[providers]]
    name = "a"
    kind = "openai"
    base_url = "http://a"
    api_key = {basic(secret)}
    [[providers]]
    name = "b"
    kind = "ollama"
    base_url = "http://b"
    api_key = "env:B_KEY"
    [[clients]]
    name = "c"
    key = {basic("c" + secret)}
    """

    result = loaded(text, {"B_KEY": secret, "SENTINEL_ADMIN_TOKEN": secret})

    config = result.config
    assert config.admin.token is not None
    assert config.admin.token.get_secret_value() == secret
    for shown in (repr(config), str(config), effective(config), str(as_public_dict(config)), repr(result)):
        assert HEAD not in shown
        assert TAIL not in shown


@given(secret=SECRETS, key=st.sampled_from(KEYS))
def test_a_secret_in_the_wrong_place_is_not_quoted_back(secret: str, key: str) -> None:
    table, _, name = key.rpartition(".")
    parent = "[[providers]]\n" if table == "providers.timeouts" else ""
    text = f"{parent}{header(table) if table else ''}\n{name} = {basic(secret)}\nxyz = 1"

    try:
        loaded(text)
    except ConfigError as error:
        said = [str(error), repr(error), repr(error.__context__), *map(str, error.mistakes)]

    assert not any(HEAD in text or TAIL in text for text in said)


@given(secret=SECRETS, name=st.sampled_from([*SETS, "APP_ENV"]))
def test_a_secret_in_the_wrong_variable_is_not_quoted_back(secret: str, name: str) -> None:
    try:
        said = " ".join(load(None, {name: f"{secret} \x00"}).notes)
    except ConfigError as error:
        said = str(error)

    assert HEAD not in said
    assert TAIL not in said


@st.composite
def configurations(draw: st.DrawFn) -> Config:
    """A configuration that can be used, with any text where any may stand."""

    def section(name: str) -> dict[str, Any]:
        defaults = getattr(Config(), name)
        numbers = {key: value for key, value in defaults if isinstance(value, (int, float))}
        numbers = {key: value for key, value in numbers.items() if key != "workers" and "backoff" not in key}
        floats = {key: FLOATS for key in numbers if type(defaults).model_fields[key].annotation is float}
        return draw(st.fixed_dictionaries({}, optional={key: st.integers(1, 9) for key in numbers} | floats))

    def provider(name: str) -> dict[str, Any]:
        optional = {
            "api_key": SECRETS,
            "models": st.dictionaries(TEXTS, TEXTS),
            "transport": st.sampled_from(["http1", "httpx"]),
            "keep_alive": st.integers() | st.just("1h5m"),
            "timeouts": st.fixed_dictionaries({}, optional={"idle": FLOATS, "connect": FLOATS}),
        }
        fixed = {
            "name": st.just(name),
            "kind": st.just("ollama"),
            "base_url": st.just("http://a"),
        }
        return draw(st.fixed_dictionaries(fixed, optional=optional))

    sections = ["server", "timeouts", "retry", "health", "rate_limit"]
    tree: dict[str, Any] = {name: section(name) for name in sections}
    tree["server"]["host"] = draw(TEXTS)
    tree["default_model"] = draw(TEXTS)
    tree["providers"] = tuple(provider(name) for name in draw(st.lists(NAMES, unique=True, max_size=3)))
    tree["clients"] = tuple(
        {"name": name, "key": f"{index}"}
        for index, name in enumerate(draw(st.lists(NAMES, unique=True, max_size=1)))
    )
    return Config.model_validate(tree)


@given(config=configurations())
def test_the_effective_configuration_reads_back_as_itself(config: Config) -> None:
    again = loaded(effective(config)).config

    assert as_public_dict(again) == as_public_dict(config)
    assert effective(again) == effective(config)
