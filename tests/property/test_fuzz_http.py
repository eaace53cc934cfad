"""Whatever bytes come to the HTTP bridge, the answer is JSON with a stable id, or what was asked for; never a 500."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings

from potluck.ids import RunId, digest_bytes
from potluck.lm.config import ModelConfig
from potluck.lm.soup_config import SoupConfig
from router.book import Loaded, ViewBook
from router.choose import Decision
from router.desk import Desk
from router.detokenise import TextStream
from router.fleet import Fleet
from router.http import MAX_BODY_BYTES, MAX_HEADER_BYTES, HttpBridge
from router.patience import Patience
from router.view import SoupView, View
from tests.fuzz.bending import bent, shapeless, spoilt

MODEL = ModelConfig(vocab=256, hidden=4, layers=1, heads=1, ffn=8, context=17)
BODY = {
    "text": "one two",
    "run": "first",
    "slot": "one",
    "max_tokens": 4,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.9,
    "seed": 7,
    "stop": ["."],
}
SOUP_BODY = {"text": "one two", "run": "first", "model": "soup:a=0.25,b%2C=0.75"}
WHOLE = b"POST /route HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\n\r\n" + b'{"text": "a"}'


class Letters:
    """A tokenizer whose tokens are bytes, and one model that answers all, beside those of a soup."""

    domains = ("a", "b,")

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def check(self, ids: tuple[int, ...]) -> None:
        assert all(0 <= token < 2**32 for token in ids)

    def decide(self, ids: tuple[int, ...]) -> Decision:
        return Decision(expert=0)

    def text(self, ids: tuple[int, ...]) -> str:
        return self.text_stream().feed(ids)

    def text_stream(self) -> TextStream:
        return TextStream(tuple(bytes([number]) for number in range(256)))


def a_book() -> ViewBook:
    view = View(
        run=RunId(digest_bytes(b"run")),
        name="first",
        method="single",
        tokenizer=digest_bytes(b"t"),
        sequence_length=16,
        prefix_length=8,
        expert_model=MODEL,
        slots={"one": digest_bytes(b"w"), "bank": digest_bytes(b"b")},
        route_by="one",
        default_slot="one",
        soup=SoupView(slot="bank", labels=digest_bytes(b"l"), config=SoupConfig(domains=2, experts=3)),
    )
    book = ViewBook(lambda: None)
    book.install(Loaded(view=view, version=1, scorer=Letters()), ready=frozenset())
    return book


async def exchange(request: bytes, *, whole: bool) -> bytes:
    """All that a bridge without replicas answers to these bytes; unless they are whole, the client then hangs up."""
    with ThreadPoolExecutor(1) as executor:
        desk = Desk(a_book(), Fleet(lambda: None), executor, Patience(0.0), lambda *_: None)
        bridge = HttpBridge(desk, lambda: True)
        port = await bridge.start("127.0.0.1", 0)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            if not whole:
                writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), 20)
            writer.close()
            return answer
        finally:
            await bridge.close()


def check(request: bytes, *, whole: bool = False) -> int:
    answer = asyncio.run(exchange(request, whole=whole))
    if not answer:  # the connection was reset before the request was read whole
        return 0
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    assert head.startswith(b"HTTP/1.1 ")
    assert status != 500, answer
    told = json.loads(body)
    if status != 200:
        error_id = told.get("error", {"id": "net.none"})["id"]
        assert not error_id.startswith("bug."), told
    return status


def post(path: str, body: bytes) -> bytes:
    return f"POST /{path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("path", ["route", "score", "generate"])
@settings(max_examples=80)
@given(body=bent(BODY))
def test_a_sound_body_with_parts_bent_is_answered_or_refused_with_a_stable_id(path: str, body: bytes) -> None:
    assert check(post(path, body), whole=True)


@pytest.mark.parametrize("path", ["score", "instantiate"])
@settings(max_examples=60)
@given(body=bent(SOUP_BODY))
def test_a_bent_wish_for_a_soup_s_model_is_answered_or_refused_with_a_stable_id(path: str, body: bytes) -> None:
    assert check(post(path, body), whole=True)


@settings(max_examples=60)
@given(body=shapeless())
def test_a_shapeless_body_is_refused_with_a_stable_id(body: bytes) -> None:
    assert check(post("generate", body), whole=True)


@settings(max_examples=120)
@given(request=spoilt(WHOLE) | shapeless())
def test_a_request_with_bytes_changed_is_answered_or_refused_with_a_stable_id(request: bytes) -> None:
    check(request)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"GET /health HTTP/1.1\r\n",
        b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * MAX_HEADER_BYTES,
        b"POST /route HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /route HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1),
        b"POST /route HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /route HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /route HTTP/1.1\r\nOrigin: http://evil.example\r\n\r\n",
        post("route", b"[" * 100_000),
        post("route", b'{"text": "\\ud800"}'),
        post("generate", b'{"text": "a", "temperature": ' + b"9" * 400 + b"}"),
        post("generate", b'{"text": "a", "stop": ["\\udfff"]}'),
    ],
    ids=lambda data: bytes(data[:40]).decode("latin-1"),
)
def test_a_request_that_no_client_of_ours_sends_is_refused(request_bytes: bytes) -> None:
    assert check(request_bytes) in (0, 400, 403)


def test_a_sound_request_is_answered(tmp_path: Path) -> None:
    assert check(post("route", json.dumps(BODY).encode())) == 200
    assert check(b"GET /health HTTP/1.1\r\n\r\n") == 200
    assert check(post("generate", json.dumps(BODY).encode()), whole=True) == 503  # no node serves here
    for path in ("score", "instantiate"):
        assert check(post(path, json.dumps(SOUP_BODY).encode()), whole=True) == 503
