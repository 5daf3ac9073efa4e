"""The addresses: OpenAI's models and chat completions, and a page with a chat."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

from attrs import frozen
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mgk_core.contract.errors import MgkError
from mgk_share.serve.voices import FINAL, Voice

HOSTS = ["127.0.0.1", "localhost"]
"""A page of the web whose name was pointed at this machine has another one."""

ROLES = ("system", "user", "assistant")


class BadRequest(Exception):
    """A request that is wrong: what, and what was expected."""


@frozen
class Asked:
    """A chat completion that is asked for."""

    model: str
    messages: list[dict[str, str]]
    tokens: int
    stream: bool


def make_app(voices: Mapping[str, Voice], run: str, tokens: int) -> Starlette:
    """Return the application. tokens: of an answer whose request names no number."""

    async def models(_: Request) -> Response:
        found = [{"id": name, "object": "model", "owned_by": run} for name in voices]
        return JSONResponse({"object": "list", "data": found})

    async def completions(request: Request) -> Response:
        try:
            asked = _asked(await request.body(), voices, tokens)
            voice = voices[asked.model]
            prompt = await run_in_threadpool(voice.prompt, asked.messages)
        except (BadRequest, MgkError) as error:
            wrong = {"message": str(error), "type": "invalid_request_error"}
            return JSONResponse({"error": wrong}, status_code=400)
        if asked.stream:
            events = _events(voice, prompt, asked)
            return StreamingResponse(events, media_type="text/event-stream")
        return JSONResponse(await run_in_threadpool(_whole, voice, prompt, asked))

    async def page(_: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        text = (files("mgk_share") / "serve" / "page.html").read_text(encoding="utf-8")
        policy = f"default-src 'none'; connect-src 'self'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
        return HTMLResponse(
            text.replace("NONCE", nonce), headers={"Content-Security-Policy": policy}
        )

    return Starlette(
        routes=[
            Route("/", page),
            Route("/v1/models", models),
            Route("/v1/chat/completions", completions, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
    )


def _asked(body: bytes, voices: Mapping[str, Voice], tokens: int) -> Asked:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    if not isinstance(given, dict):
        raise BadRequest("expected a JSON object")
    model = given.get("model", FINAL)
    if model not in list(voices):
        raise BadRequest(f"model: expected one of {', '.join(voices)}, got {model!r}")
    if given.get("temperature") not in (None, 0):
        raise BadRequest("temperature: expected 0; answers take the most likely token")
    limit = given.get("max_completion_tokens", given.get("max_tokens")) or tokens
    if not isinstance(limit, int) or not 1 <= limit <= 8192:
        raise BadRequest(f"max_tokens: expected 1 to 8192, got {limit!r}")
    return Asked(
        model, _messages(given.get("messages")), limit, bool(given.get("stream"))
    )


def _messages(given: Any) -> list[dict[str, str]]:
    if not isinstance(given, list) or not given:
        raise BadRequest("messages: expected a list of messages, got none")
    found = []
    for number, message in enumerate(given):
        entry = message if isinstance(message, dict) else {}
        role, content = entry.get("role"), entry.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise BadRequest(
                f"messages[{number}]: expected a role ({', '.join(ROLES)}) and content as text"
            )
        found.append({"role": role, "content": content})
    return found


def _whole(voice: Voice, prompt: tuple[int, ...], asked: Asked) -> dict[str, Any]:
    pieces = list(voice.answer(prompt, tokens=asked.tokens))
    text = "".join(piece.text for piece in pieces)
    made = pieces[-1].made
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop" if pieces[-1].ended else "length",
    }
    usage = {
        "prompt_tokens": len(prompt),
        "completion_tokens": made,
        "total_tokens": len(prompt) + made,
    }
    return {**_head(asked, "chat.completion"), "choices": [choice], "usage": usage}


def _events(voice: Voice, prompt: tuple[int, ...], asked: Asked) -> Iterator[str]:
    head = _head(asked, "chat.completion.chunk")

    def event(delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return (
            f"data: {json.dumps({**head, 'choices': [choice]}, ensure_ascii=False)}\n\n"
        )

    yield event({"role": "assistant", "content": ""})
    reason = "length"
    try:
        for piece in voice.answer(prompt, tokens=asked.tokens):
            reason = "stop" if piece.ended else "length"
            if piece.text:
                yield event({"content": piece.text})
    except (
        MgkError
    ) as error:  # such as a prompt that has become too long; the status is sent already
        yield f"data: {json.dumps({'error': {'message': str(error)}}, ensure_ascii=False)}\n\n"
        return
    yield event({}, reason)
    yield "data: [DONE]\n\n"


def _head(asked: Asked, kind: str) -> dict[str, Any]:
    name = f"chatcmpl-{secrets.token_hex(8)}"
    return {
        "id": name,
        "object": kind,
        "created": int(time.time()),
        "model": asked.model,
    }
