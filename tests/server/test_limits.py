"""Keys, tenants, places, limits, clients that leave, and the end of a server."""

from __future__ import annotations

import asyncio
import http.client
import json
import select
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_support import Running, key, serving

from foveal.batch.room import PoolRoom
from foveal.errors import ParameterError
from foveal.server.admission import Gate
from foveal.server.auth import ANYBODY, Keys, digest_of
from foveal.server.failures import ApiError
from foveal.server.settings import Settings

pytestmark = pytest.mark.slow

LONG = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 50_000,
    "stream": True,
    "ignore_eos": True,
}


def post(running: Running, secret: str | None, path: str, **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    return httpx.post(f"{running.url}{path}", json=body, headers=headers, timeout=60)


def chat(running: Running, secret: str | None, text: str = "hello", **settings: Any) -> httpx.Response:
    messages = [{"role": "user", "content": text}]
    return post(running, secret, "/v1/chat/completions", messages=messages, **({"max_tokens": 2, "seed": 1} | settings))


def idle(running: Running) -> bool:
    """Whether nothing is in work, seen within the time that any test may take."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if running.call(lambda: len(running.service.works)) == 0 and not running.engine.call(
            lambda: running.engine.batch.scheduler.busy
        ):
            return True
    return False


def answered(connection: http.client.HTTPConnection) -> bool:
    return bool(select.select([connection.sock], [], [], 0)[0])


# ---------------------------------------------------------------------- keys and tenants


def test_nobody_comes_in_without_a_key(tmp_path: Path) -> None:
    with serving(tmp_path, keys=(key("alice"),)) as running:
        assert [chat(running, secret).status_code for secret in (None, "nobody", "alice")] == [401, 401, 200]
        both = {"x-api-key": "alice", "authorization": "Bearer other"}
        assert httpx.get(f"{running.url}/v1/models", headers=both, timeout=60).status_code == 200
        refused = httpx.post(f"{running.url}/v1/messages", json={}, headers={"x-api-key": "no"}, timeout=60).json()
        assert refused["error"]["type"] == "authentication_error"
        assert httpx.post(f"{running.url}/mcp", json={}, timeout=60).status_code == 401
        for path in ("/metrics", "/v1/models", "/v1/nothing", "/tokenizer_info"):
            assert httpx.get(f"{running.url}{path}", timeout=60).status_code == 401
        headers = {"content-type": "application/json"}
        for path in ("/v1/messages", "/v1/responses", "/v1/completions"):  # what was sent does not matter then
            assert httpx.post(f"{running.url}{path}", content=b"{no", headers=headers, timeout=60).status_code == 401
        assert httpx.get(f"{running.url}/health", timeout=60).status_code == 200


def test_tenants_share_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, keys=(key("alice"), key("bob"), key("ann", tenant="alice"))) as running:
        text = "a secret of ours " * 60
        assert chat(running, "alice", text).status_code == 200
        cached = {
            secret: chat(running, secret, text).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            for secret in ("bob", "ann")
        }
        assert cached["bob"] == 0 and cached["ann"] > 100, "a hit tells a tenant nothing of another"
        assert post(running, "alice", "/v1/memories", name="m", text="hello\n").status_code == 201
        for path in ("/v1/memories/m", "/v1/memories/m/head", "/v1/memories/m/export"):
            assert httpx.get(f"{running.url}{path}", headers={"x-api-key": "bob"}, timeout=60).status_code == 404
        assert httpx.get(f"{running.url}/v1/memories", headers={"x-api-key": "bob"}, timeout=60).json()["data"] == []
        assert chat(running, "bob", model="tiny@m").status_code == 404
        made = post(running, "alice", "/v1/responses", input="x", max_output_tokens=2).json()["id"]
        assert (
            httpx.get(f"{running.url}/v1/responses/{made}", headers={"x-api-key": "bob"}, timeout=60).status_code == 404
        )
        whys = httpx.get(f"{running.url}/v1/why", headers={"x-api-key": "bob"}, timeout=60).json()["data"]
        assert {why["reason"] for why in whys} == {"new"}


def test_a_key_sees_what_it_may(tmp_path: Path) -> None:
    keys = (key("all", tenant="t"), key("some", tenant="t", memories=("open-*",), writes=False, models=("tiny",)))
    with serving(tmp_path, keys=keys) as running:
        for name in ("open-1", "closed"):
            assert post(running, "all", "/v1/memories", name=name, text="hello\n").status_code == 201
        seen = httpx.get(f"{running.url}/v1/memories", headers={"x-api-key": "some"}, timeout=60).json()["data"]
        assert [memory["name"] for memory in seen] == ["open-1"]
        assert chat(running, "some", memory="closed").status_code == 404
        assert chat(running, "some", memory="open-1").status_code == 200
        assert chat(running, "all", memory="closed").status_code == 200
        for secret, told in (("all", ["closed", "open-1"]), ("some", ["open-1"])):
            whys = httpx.get(f"{running.url}/v1/why", headers={"x-api-key": secret}, timeout=60).json()["data"]
            assert [why["memory"] for why in whys] == told
        assert post(running, "some", "/v1/memories", name="open-2", text="x\n").status_code == 403
        assert post(running, "some", "/v1/memories/open-1/append", text="x\n").status_code == 403
        assert chat(running, "some", max_tokens=9).json()["usage"]["completion_tokens"] == 9


def test_the_file_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'[alice]\nsha256 = "{digest_of("secret").hex()}"\ntenant = "t"\nconcurrency = 2\n')
    keys = Keys.read(file, "other")
    found = keys.of("secret")
    assert found is not None and (found.name, found.tenant, found.concurrency) == ("alice", "t", 2)
    assert keys.of("other") is not None and keys.of("nothing") is None and keys.of(None) is None
    for bad in (
        '[a]\nsha256 = "00"',
        "[a]\nsha256 = 3",
        f'[a]\nsha256 = "{"0" * 64}"\nconcurrency = true',
        "a = 3",
        "[",
    ):
        file.write_text(bad)
        with pytest.raises(ParameterError):
            Keys.read(file)


def test_a_server_without_keys_stays_on_this_machine(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::", "example.org"):
        with pytest.raises(ParameterError, match="no key"):
            Settings(host=host).check_reach(0)
        Settings(host=host).check_reach(1)
        Settings(host=host, insecure=True).check_reach(0)
    for host in ("127.0.0.1", "localhost", "::1"):
        Settings(host=host).check_reach(0)
    with serving(tmp_path) as running:
        for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
            assert httpx.get(f"{running.url}/v1/models", headers=headers, timeout=60).status_code == 403


# ---------------------------------------------------------------------- places


def test_who_finds_no_place_is_told_when_to_come_again() -> None:
    async def work() -> None:
        gate = Gate(running=1, waiting=1, patience=0.01)
        async with gate.place(ANYBODY):
            with pytest.raises(ApiError, match="no place was free") as refused:
                async with gate.place(ANYBODY):
                    pass
            assert refused.value.status == 503 and refused.value.retry
        async with gate.place(ANYBODY):
            pass
        assert (gate.running, gate.waiting) == (0, 0)

    asyncio.run(work())


def test_the_queue_has_an_end() -> None:
    async def work() -> None:
        gate = Gate(running=1, waiting=1, patience=60)

        async def hold(entered: asyncio.Event, leave: asyncio.Event) -> None:
            async with gate.place(ANYBODY):
                entered.set()
                await leave.wait()

        events = [(asyncio.Event(), asyncio.Event()) for _ in range(2)]
        tasks = [asyncio.create_task(hold(*pair)) for pair in events]
        await events[0][0].wait()
        while not gate.waiting:
            await asyncio.sleep(0)
        with pytest.raises(ApiError, match="1 requests are waiting"):
            async with gate.place(ANYBODY):
                pass
        for _, leave in events:
            leave.set()
        await asyncio.gather(*tasks)

    asyncio.run(work())


def test_a_key_has_as_many_places_as_it_may(tmp_path: Path) -> None:
    with serving(tmp_path, keys=(key("one", concurrency=1), key("other")), patience=0.05) as running:
        with httpx.stream(
            "POST", f"{running.url}/v1/chat/completions", json=LONG, headers={"x-api-key": "one"}, timeout=60
        ) as held:
            pieces = held.iter_bytes()  # dropped, it would close the stream
            next(pieces)
            refused = chat(running, "one")
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            assert chat(running, "other").status_code == 200
        assert idle(running) and chat(running, "one").status_code == 200


def test_a_body_has_a_limit(tmp_path: Path) -> None:
    with serving(tmp_path, body_bytes=2000) as running:
        assert chat(running, None, "x" * 3000).status_code == 413

        def pieces() -> Any:
            yield from (b"x" * 500 for _ in range(9))

        headers = {"content-type": "application/json"}
        answer = httpx.post(f"{running.url}/v1/chat/completions", content=pieces(), headers=headers, timeout=60)
        assert answer.status_code == 413 and "larger than 2,000 bytes" in answer.json()["error"]["message"]
        assert chat(running, None).status_code == 200


def test_replies_have_a_limit(tmp_path: Path) -> None:
    settings = {"output_tokens": 5, "most_output_tokens": 7, "context_length": 64}
    with serving(tmp_path, keys=(key("a"), key("b", output_tokens=3)), **settings) as running:
        written = [
            chat(running, secret, **wish).json()["usage"]["completion_tokens"]
            for secret, wish in (
                ("a", {"max_tokens": None}),
                ("a", {"max_tokens": 32_000}),
                ("b", {"max_tokens": 32_000}),
            )
        ]
        assert written == [5, 7, 3]
        room = chat(running, "a", "word " * 50, max_tokens=100).json()
        assert room["usage"]["total_tokens"] <= 64


def test_the_default_is_not_above_the_limit(tmp_path: Path) -> None:
    with serving(tmp_path, output_tokens=9, most_output_tokens=4) as running:
        assert chat(running, None, max_tokens=None).json()["usage"]["completion_tokens"] <= 4


def test_an_answer_that_takes_too_long_ends(tmp_path: Path) -> None:
    with serving(tmp_path, request_seconds=0.0) as running:
        answer = chat(running, None, max_tokens=100)
        assert answer.status_code == 503, answer.text


# ---------------------------------------------------------------------- the end


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_a_client_that_leaves_ends_its_work(tmp_path: Path, path: str) -> None:
    body = LONG | {"input": "hello", "max_output_tokens": 50_000}
    with serving(tmp_path) as running:
        with httpx.stream("POST", f"{running.url}{path}", json=body, timeout=60) as stream:
            next(stream.iter_bytes())
        assert idle(running)
        connection = http.client.HTTPConnection(running.url.removeprefix("http://"))
        whole = json.dumps(body | {"stream": False})
        connection.request("POST", path, whole, {"content-type": "application/json"})
        while not running.call(lambda: len(running.service.works)):
            if answered(connection):  # a random model may end by itself
                break
        connection.close()
        assert idle(running)


def test_many_streams_at_once_and_pages_come_back(tmp_path: Path) -> None:
    def one(number: int) -> int:
        body = LONG | {"max_tokens": 20, "seed": number, "n": 1 + number % 3}
        with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body, timeout=120) as stream:
            if number % 4 == 0:
                next(stream.iter_bytes())
                return 0
            return stream.read().count(b'"finish_reason":"length"')

    with serving(tmp_path, running=8) as running:
        with ThreadPoolExecutor(24) as threads:
            ended = list(threads.map(one, range(48)))
        assert all(count == (0 if n % 4 == 0 else 1 + n % 3) for n, count in enumerate(ended))
        assert idle(running)
        engine = running.engine
    assert engine.pool.live == 0


def test_replies_make_room_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight streams that grow to three pages each, where there are ten: each says what it says alone."""
    made: list[int] = []
    park = PoolRoom.park
    monkeypatch.setattr(PoolRoom, "park", lambda room, state: (made.append(state.length), park(room, state))[1])

    def one(number: int) -> str:
        prompt = [number + 10] * 200
        body = {"prompt": prompt, "max_tokens": 400, "temperature": 1, "seed": number, "ignore_eos": True}
        answer = post(running, None, "/v1/completions", **body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    with serving(tmp_path, save_prompts=False) as running:
        alone = [one(number) for number in range(8)]
        assert not made
        running.engine.pool.limit = 10
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(one, range(8))) == alone
        assert made, "nobody had to make room: the test tests nothing"
        assert idle(running)
        engine = running.engine
    assert engine.pool.live == 0


def test_a_server_that_is_stopped_ends_its_streams(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        with serving(tmp_path, drain_seconds=0.2) as running:
            stream = threads.submit(httpx.post, f"{running.url}/v1/chat/completions", json=LONG, timeout=60)
            while not running.service.gate.running:
                time.sleep(0.001)
        text = stream.result().text
        assert "being stopped" in text or not text
