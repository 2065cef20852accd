"""Tool calls of local models: each family writes them its own way, callers see OpenAI's.

Hermes (Qwen 2.5 and 3)   <tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>, any number, text before them
Mistral                   [TOOL_CALLS] [{"name": …, "arguments": {…}}, …], from version 11 on name[ARGS]{…}
Llama 3.1 and later       {"name": …, "parameters": {…}}, the whole output

Which one a model speaks is read off its chat template. The marks of the last two are control tokens, so that they do
not appear in decoded text: an output that is a call as a whole is recognised by its form and its tool's name.
"""

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidRequest

Json = dict[str, Any]
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_NAMED = re.compile(r"\s*([\w-]+)\s*(\{.*\})\s*", re.DOTALL)


@dataclass(frozen=True)
class ToolFormat:
    """tagged: calls stand between marks in the text.  mark: control token before a call, or none.
    arguments: the field that holds them.  listed: calls come as one list."""

    tagged: bool
    mark: str
    arguments: str
    listed: bool


HERMES = ToolFormat(True, "", "arguments", False)
MISTRAL = ToolFormat(False, "[TOOL_CALLS]", "arguments", True)
LLAMA = ToolFormat(False, "", "parameters", False)


def tool_format(chat_template: str) -> ToolFormat | None:
    """How models with this template call tools; None where it knows of none."""
    if "tools" not in chat_template:
        return None
    if _OPEN in chat_template:
        return HERMES
    return MISTRAL if MISTRAL.mark in chat_template else LLAMA


def for_template(message: Json) -> Json:
    """Arguments as objects, as chat templates expect them; OpenAI's API has them as text."""
    calls = [
        call | {"function": call["function"] | {"arguments": _object(call["function"]["arguments"])}}
        for call in message.get("tool_calls") or []
    ]
    return message | {"tool_calls": calls} if calls else message


def _object(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError as error:
        raise InvalidRequest("tool_calls.function.arguments must be JSON.", param="messages") from error


def forced(tools: list[Json], choice: Any) -> list[Json]:
    """The tools of which one must be called: all for "required", the named one, none otherwise."""
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        found = [tool for tool in tools if tool["function"]["name"] == name]
        if not found:
            raise InvalidRequest(f"tool_choice names {name!r}, which is not among the tools.", param="tool_choice")
        return found
    return tools if choice == "required" else []


def grammar(form: ToolFormat, tools: list[Json], mark_id: int | None) -> str:
    """One call of one of these tools, in the family's own form, as an llguidance (Lark) grammar."""
    calls = [_call_schema(form, tool["function"]) for tool in tools]
    schema = json.dumps({"anyOf": calls, "x-guidance": {"whitespace_flexible": False}})
    mark = f"<[{mark_id}]> " if mark_id is not None else ""
    before, after = (f'"{_OPEN}\\n"', f'"\\n{_CLOSE}"') if form.tagged else ('"["', '"]"') if form.listed else ("", "")
    return f"start: {mark}{before} call {after}\ncall: %json {schema}\n"


def _call_schema(form: ToolFormat, function: Json) -> Json:
    arguments = function.get("parameters") or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, form.arguments: arguments},
        "required": ["name", form.arguments],
        "additionalProperties": False,
    }


class ToolCallParser:
    """Separates text from calls while an output streams. One per output; close() at its end."""

    def __init__(self, form: ToolFormat, tools: list[Json]) -> None:
        self._form = form
        self._names = {tool["function"]["name"] for tool in tools}
        self._held = ""
        self._count = 0
        self._after_call = False

    @property
    def called(self) -> bool:
        return self._count > 0

    def push(self, text: str) -> tuple[str, list[Json]]:
        """Text to show and calls that are complete."""
        self._held += text
        if self._form.tagged:
            return self._tagged()
        if self._held.lstrip()[:1] in ("", "{", "[") or self._may_be_named():
            return "", []
        shown, self._held = self._held, ""
        return shown, []

    def close(self) -> tuple[str, list[Json]]:
        held, self._held = self._held, ""
        if self._form.tagged:
            return held, []
        found = list(self._parse(held))
        return ("", self._fragments(found)) if found else (held, [])

    def _tagged(self) -> tuple[str, list[Json]]:
        """Line breaks around a call are its frame and not text: those at the end are held until more is known."""
        shown, calls = "", []
        while (start := self._held.find(_OPEN)) >= 0 and (end := self._held.find(_CLOSE, start)) >= 0:
            inside, whole = self._held[start + len(_OPEN) : end], self._held[: end + len(_CLOSE)]
            found = list(self._parse(inside))
            calls += self._fragments(found)
            shown += self._held[:start].strip("\n") if found else whole
            self._held = self._held[len(whole) :]
            self._after_call = bool(found)
        if self._after_call:
            self._held = self._held.lstrip("\n")
            self._after_call = not self._held
        safe = start if start >= 0 else len(self._held) - _overlap(self._held, _OPEN)
        safe = len(self._held[:safe].rstrip("\n"))
        shown, self._held = shown + self._held[:safe], self._held[safe:]
        return shown, calls

    def _may_be_named(self) -> bool:
        """Mistral's name[ARGS]{…}, of which `name{…}` is left."""
        text = self._held.lstrip()
        return self._form.listed and any(name.startswith(text) or text.startswith(name) for name in self._names)

    def _parse(self, text: str) -> Iterator[Json]:
        """The calls that this text is, or nothing where it is something else."""
        named = _NAMED.fullmatch(text) if self._form.listed else None
        try:
            value = {"name": named[1], "arguments": json.loads(named[2])} if named else json.loads(text)
        except ValueError:
            return
        calls = value if isinstance(value, list) else [value]
        if all(isinstance(call, dict) and call.get("name") in self._names for call in calls):
            yield from calls

    def _fragments(self, calls: list[Json]) -> list[Json]:
        fragments = []
        for call in calls:
            arguments = call.get("arguments", call.get("parameters", {}))
            function = {"name": call["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
            fragments.append(
                {"index": self._count, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
            )
            self._count += 1
        return fragments


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of text that is a proper beginning of mark."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
