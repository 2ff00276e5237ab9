"""Converts tool calls and lists of tools from the formats of data sets to the form that chat templates expect."""

from typing import Any

import orjson

from data_prep.parse.conversation import RecordError

# Keywords of a JSON Schema that may be null.
NULLABLE = ("default", "const", "example")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")


def parse_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Parse one call or a list of calls, which may be JSON text.

    Raises RecordError whose reason begins with `where`.
    """
    if isinstance(calls, str):
        calls = load_json(calls, where)
    return [parse_call(call, where) for call in (calls if isinstance(calls, list) else [calls])]


def parse_call(call: Any, where: str) -> dict[str, Any]:
    """Parse a call to `{"id"?, "type": "function", "function": {"name", "arguments": dict | list | str}}`.

    Raises RecordError whose reason begins with `where`.
    """
    function = call.get("function", call) if isinstance(call, dict) else None
    if isinstance(function, str):  # {"function": NAME, "arguments": …}
        function = {**call, "name": function}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RecordError(f"{where}: a tool call without a function name")
    arguments = next((function[key] for key in ARGUMENT_KEYS if function.get(key) is not None), {})
    if isinstance(arguments, str):
        text = f"{where}: arguments of {function['name']}"
        loaded = load_json(arguments, text) if arguments.strip() else {}
        arguments = loaded if isinstance(loaded, dict | list) else arguments
    if not isinstance(arguments, dict | list | str):
        raise RecordError(f"{where}: arguments of {function['name']} are a {type(arguments).__name__}, not an object")
    kept = {"id": call["id"]} if call.get("id") is not None else {}
    return {**kept, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def parse_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Parse the tools of a record, a list of objects that may be JSON text; None if there are none.

    Raises RecordError.
    """
    if isinstance(tools, str):
        tools = load_json(tools, "tools") if tools.strip() else None
    if not tools:
        return None
    if isinstance(tools, list):
        tools = [load_json(tool, "tools") if isinstance(tool, str) else tool for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RecordError("'tools' is not a list of objects")
    return [_wrap_tool(_drop_null_keywords(tool)) for tool in tools]


def _drop_null_keywords(value: Any) -> Any:
    """Drop null keys. They appear when schemas with different keys are stored as one table column."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if item is not None or key in NULLABLE}
        return {key: _drop_null_keywords(item) for key, item in kept.items()}
    return [_drop_null_keywords(item) for item in value] if isinstance(value, list) else value


def drop_foreign_arguments(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> None:
    """Drop null arguments of calls that the tool does not declare.

    They appear when calls with different arguments are stored as one table column.
    """
    functions = [tool.get("function") for tool in tools or ()]
    known = {function.get("name"): function for function in functions if isinstance(function, dict)}
    for call in (call for message in messages for call in message.get("tool_calls") or ()):
        function = call["function"]
        parameters = (known.get(function["name"]) or {}).get("parameters")
        declared = parameters.get("properties") if isinstance(parameters, dict) else None
        if isinstance(declared, dict) and isinstance(arguments := function["arguments"], dict):
            function["arguments"] = {k: item for k, item in arguments.items() if item is not None or k in declared}


def _wrap_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Wrap a bare function (`functions` of older OpenAI files, Anthropic's with `input_schema`) for templates."""
    if not isinstance(tool.get("name"), str) or "function" in tool:
        return tool
    function = {key: item for key, item in tool.items() if key != "type"}
    if "input_schema" in function:
        function["parameters"] = function.pop("input_schema")
    return {"type": "function", "function": function}


def load_json(text: str, what: str) -> Any:
    """Parse JSON text. Raises RecordError whose reason begins with `what`."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if text.lstrip()[:2] in ("[{", "{'") and "'" in text[:40]:
            raise RecordError(f"{what}: Python repr instead of JSON: write it with json.dumps") from None
        raise RecordError(f"{what}: malformed JSON ({error})") from None
