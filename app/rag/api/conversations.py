"""/api/v1/conversations: questions that follow each other."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import Controller, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import Meta, Struct

from app.gateway import cursor as cursors
from app.rag.answers.conversations import Conversations, History, ShownTurn
from app.rag.api.documents import answered
from app.rag.api.schemas import AnswerRequest
from app.rag.records import Conversation
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope

ANSWERS = (requires_scope(Scope.ANSWERS),)
Limit = Annotated[int, QueryParameter(ge=1, le=cursors.MAX_LIMIT)]


class ConversationRequest(Struct, forbid_unknown_fields=True):
    """Without a title, the first question becomes it."""

    title: Annotated[str, Meta(max_length=200)] = ""


class ConversationView(Struct):
    id: UUID
    title: str
    created_at: datetime


class ConversationList(Struct):
    """`next_cursor`: null on the last page."""

    conversations: list[ConversationView]
    next_cursor: str | None


class TurnView(Struct):
    """`answer` is the `AnswerView` as it was given; `searched` what its documents were searched for."""

    id: UUID
    created_at: datetime
    question: str
    searched: dict[str, Any]
    answer: dict[str, Any]


class HistoryView(Struct):
    """`hidden`: turns that cannot be shown, since a document of theirs was replaced or is not the caller's to read."""

    id: UUID
    title: str
    created_at: datetime
    turns: list[TurnView]
    hidden: int


class ConversationController(Controller):
    path = "/api/v1/conversations"
    tags = ("conversations",)
    guards = ANSWERS

    @post(summary="Begin a conversation")
    async def create(
        self,
        data: JSONBody[ConversationRequest],
        principal: NamedDependency[Principal],
        conversations: NamedDependency[Conversations],
    ) -> ConversationView:
        return _conversation(await conversations.create(principal, data.title))

    @get(summary="The caller's conversations, newest first")
    async def list_conversations(
        self,
        principal: NamedDependency[Principal],
        conversations: NamedDependency[Conversations],
        cursor: FromQuery[str | None] = None,
        limit: Limit = 50,
    ) -> ConversationList:
        rows, following = await conversations.page(principal, cursor, limit)
        return ConversationList([_conversation(row) for row in rows], following)

    @get("/{conversation_id:uuid}", summary="A conversation with the turns that may be read")
    async def get_conversation(
        self,
        conversation_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        conversations: NamedDependency[Conversations],
    ) -> HistoryView:
        return _history(await conversations.history(principal, conversation_id))

    @delete("/{conversation_id:uuid}", summary="Delete a conversation with its turns")
    async def remove(
        self,
        conversation_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        conversations: NamedDependency[Conversations],
    ) -> None:
        await conversations.delete(principal, conversation_id)

    @get("/{conversation_id:uuid}/export", summary="A conversation as a file")
    async def export(
        self,
        conversation_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        conversations: NamedDependency[Conversations],
        format: FromQuery[Literal["json", "markdown"]] = "json",
    ) -> Response[bytes]:
        view = _history(await conversations.history(principal, conversation_id))
        name, media_type, body = f"conversation-{conversation_id}.json", "application/json", msgspec.json.encode(view)
        if format == "markdown":
            name, media_type, body = name.replace(".json", ".md"), "text/markdown", markdown(view).encode()
        disposition = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(body, media_type=media_type, headers=disposition)

    @post("/{conversation_id:uuid}/answers", status_code=200, summary="Ask in a conversation")
    async def ask(
        self,
        conversation_id: FromPath[UUID],
        data: JSONBody[AnswerRequest],
        principal: NamedDependency[Principal],
        conversations: NamedDependency[Conversations],
    ) -> Response[Any]:
        """As /api/v1/answers; `searched` in the answer says what the follow-up was made of."""
        return await answered(await conversations.ask(principal, conversation_id, data), stream=data.stream)


def _conversation(row: Conversation) -> ConversationView:
    return ConversationView(row.id, row.title, row.created_at)


def _history(history: History) -> HistoryView:
    row = history.conversation
    return HistoryView(row.id, row.title, row.created_at, [_turn(turn) for turn in history.turns], history.hidden)


def _turn(turn: ShownTurn) -> TurnView:
    return TurnView(turn.id, turn.created_at, turn.question, turn.searched, turn.answer)


def markdown(view: HistoryView) -> str:
    """For people: questions as headings, answers, and each quotation with its place."""
    parts = [f"# {view.title or 'Conversation'}", f"{view.created_at:%Y-%m-%d %H:%M} UTC"]
    for turn in view.turns:
        parts.append(f"## {turn.question}")
        if turn.searched["because"]:
            parts.append(f"*Searched for: {turn.searched['question']} ({turn.searched['because']})*")
        parts.append(turn.answer["answer"])
        parts += [_quotation(citation) for citation in turn.answer["citations"]]
    if view.hidden:
        parts.append(f"*{view.hidden} more cannot be shown.*")
    return "\n\n".join(parts) + "\n"


def _quotation(citation: dict[str, Any]) -> str:
    pages = sorted({span["page"] for span in citation["spans"] if span["page"]})
    where = f", p. {', '.join(map(str, pages))}" if pages else ""
    mark = "verified" if citation["verified"] else "not verified"
    quote = " ".join(citation["quote"].split())
    place = f"[{citation['marker']}] {citation['document']}, version {citation['version']}{where}"
    return f"> {quote}\n>\n> — {place} ({mark})"
