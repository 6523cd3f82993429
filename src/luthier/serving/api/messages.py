"""Turns of a conversation as clients of OpenAI's API send them: text, alone or in parts, and calls of tools in earlier turns."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from luthier.serving.api.bodies import Body, shown, wrong
from luthier.text.prepare import has_content
from luthier.text.turns import kind_of


class TextPart(Body):
    """A piece of a turn."""

    type: Literal["text"]
    """Only text can be read."""
    text: str
    """The piece; several of them stand on lines of their own."""


class FunctionCall(Body):
    """What was called."""

    name: str
    """Of the function."""
    arguments: str
    """JSON, as the model wrote it."""


class ToolCall(Body):
    """A call in an earlier turn of the assistant's."""

    id: str
    """What `tool_call_id` of the answer to it names."""
    type: Literal["function"]
    """Only functions can be called."""
    function: FunctionCall
    """The function and its arguments."""


class ChatMessage(Body):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """Who speaks; `developer` is another name of `system`."""
    content: str | list[TextPart] | None = None
    """What is said; null only in a turn of calls."""
    name: str | None = Field(default=None, max_length=64)
    """Which of several users, or which tool."""
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=128)
    """Calls of the assistant's."""
    tool_call_id: str | None = None
    """Which call a tool answers."""
    refusal: None = None
    """What answers of OpenAI's carry; null."""
    audio: None = None
    """What answers of OpenAI's carry; null."""
    function_call: None = None
    """What answers of OpenAI's carry; null."""
    annotations: None = None
    """What answers of OpenAI's carry; null."""

    @field_validator("content", mode="before")
    @classmethod
    def _is_text(cls, content: Any) -> Any:
        # told here in one sentence: of a union, pydantic tells each way in which it could have been right
        if content is None or isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise ValueError(f"must be text or a list of text parts, not {kind_of(content)}")
        for number, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text":
                what = f"of type {shown(kind)}" if isinstance(kind, str) else "no object with type and text"
                raise ValueError(f"part {number} is {what}, and only parts of type 'text' can be read")
            if not isinstance(part.get("text"), str):
                raise ValueError(f"part {number} has no text")
            if unknown := sorted(set(part) - {"type", "text"}):
                raise ValueError(f"part {number} has the unknown field {shown(unknown[0])}")
        return content

    @model_validator(mode="after")
    def _says_something(self) -> "ChatMessage":
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise wrong("content", "is missing")
        if self.tool_calls and self.role != "assistant":
            raise wrong("tool_calls", f"are the assistant's, not of the role {self.role}")
        if self.role == "tool" and not self.tool_call_id:
            raise wrong("tool_call_id", "is missing: which call does it answer?")
        if self.role == "user" and not has_content(self.text):
            raise wrong("content", "is empty: the user says nothing")
        return self

    @property
    def text(self) -> str:
        """What is said, parts on lines of their own."""
        return "\n".join(part.text for part in self.content) if isinstance(self.content, list) else self.content or ""
