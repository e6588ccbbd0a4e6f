"""
Tools and tool choice.

Ollama is offered tools and calls them if it likes: it cannot be forced and cannot be told how
many calls to make. So a choice is carried out by what is offered, and a forced one is lossy.
The deprecated `functions` are tools under another name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sentinel_proxy.providers.ollama.facts import ModelFacts
from sentinel_proxy.providers.ollama.fields import flag, objects
from sentinel_proxy.providers.ollama.refusals import invalid_type, invalid_value, unsupported
from sentinel_proxy.providers.ollama.schema import safe_parameters

Tool = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools that are sent, and which field of the call could not be honoured."""

    tools: Sequence[Tool] = ()
    lossy: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CallRules:
    """What may become of the tool calls in an answer."""

    wanted: bool  # False: nothing was offered, so a call is the model's invention
    one: bool  # at most one call in the whole answer
    legacy: bool  # the answer says `function_call`


def chat_offer(payload: Mapping[str, Any], facts: ModelFacts) -> Offer:
    """Read `tools` and `tool_choice`, or the deprecated pair, of a chat completion."""
    flag(payload, "parallel_tool_calls")
    if payload.get("tools") is None:
        functions = [_function(function, "functions") for function in objects(payload, "functions")]
        choice = payload.get("function_call")
        named = {"function": choice} if isinstance(choice, Mapping) else choice
        return offer(functions, named, facts, ("functions", "function_call"))
    tools = [_tool(tool, tool.get("function")) for tool in objects(payload, "tools")]
    return offer(tools, payload.get("tool_choice"), facts)


def responses_offer(payload: Mapping[str, Any], facts: ModelFacts) -> Offer:
    """Read `tools` and `tool_choice` of a Responses call, whose functions lie flat in the tool."""
    flag(payload, "parallel_tool_calls")
    tools = [_tool(tool, tool) for tool in objects(payload, "tools")]
    return offer(tools, payload.get("tool_choice"), facts)


def call_rules(payload: Mapping[str, Any]) -> CallRules:
    """Say what *payload*, a chat completion that was sent, wants of the calls in its answer."""
    legacy = payload.get("tools") is None and bool(payload.get("functions"))
    choice = payload.get("function_call" if legacy else "tool_choice")
    return CallRules(
        wanted=bool(payload.get("tools") or legacy) and choice != "none",
        one=legacy or payload.get("parallel_tool_calls") is False,
        legacy=legacy,
    )


def _tool(tool: Mapping[str, Any], function: object) -> Tool:
    kind = tool.get("type")
    if not isinstance(kind, str):
        raise invalid_type("tools", "a list of tools with a type")
    if kind != "function":
        raise unsupported("tools", "Ollama can call functions, no other kind of tool")
    return _function(function, "tools")


def _function(function: object, param: str) -> Tool:
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise invalid_type(param, "a list of functions with a name")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise invalid_type(param, "a list of functions whose parameters are a JSON schema")
    native: dict[str, Any] = {"name": function["name"]}
    if isinstance(function.get("description"), str):
        native["description"] = function["description"]
    native["parameters"] = safe_parameters(parameters or {}, param)
    return {"type": "function", "function": native}


def offer(
    tools: Sequence[Tool],
    choice: object,
    facts: ModelFacts,
    params: tuple[str, str] = ("tools", "tool_choice"),
) -> Offer:
    """Apply a tool choice to *tools*; *params* are the two fields to blame."""
    chosen = _chosen(tools, choice, params[1])
    if chosen.tools and facts.lacks("tools"):
        raise unsupported(params[0], "this Ollama model cannot call tools")
    return chosen


def _chosen(tools: Sequence[Tool], choice: object, param: str) -> Offer:
    if choice is None or choice == "auto":
        return Offer(tools)
    if choice == "none":
        return Offer()
    if choice == "required":
        return Offer(tools, (param,))
    if not isinstance(choice, Mapping):
        raise invalid_value(param, f"'{param}' is not a choice that is known here")
    kind = choice.get("type", "function")
    if kind == "function":
        return Offer(_named(tools, [choice], param), (param,))
    if kind == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        if not isinstance(allowed, Mapping):
            raise invalid_type(param, "an object that lists the allowed tools")
        entries = objects(allowed, "tools")
        return Offer(_named(tools, entries, param), (param,) if allowed.get("mode") == "required" else ())
    raise unsupported(param, "Ollama can be led to functions only")


def _named(tools: Sequence[Tool], entries: Sequence[Mapping[str, Any]], param: str) -> list[Tool]:
    """Return the tools that *entries* name, nested (`function.name`) or flat (`name`)."""
    names = set()
    for entry in entries:
        function = entry.get("function", entry)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str):
            raise invalid_type(param, "an object that names a function")
        names.add(name)
    known = {tool["function"]["name"] for tool in tools}
    if not names <= known:
        raise invalid_value(param, f"'{param}' names a function that is not among the tools")
    return [tool for tool in tools if tool["function"]["name"] in names]
