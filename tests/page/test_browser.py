"""The page in a real browser: reading, chatting, citing, forking, what is stale, what goes wrong, and for whom.

The server is a real one, on the nano. `FOVEAL_IMAGES=docs/images` has the pictures of the documents made again.
"""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from page_support import CUE, LONG, Open, accessible, ask
from server_support import Running, key, serving

pytestmark = pytest.mark.slow


# ---------------------------------------------------------------------- read, chat, cite


def test_memories_are_listed_as_a_tree_of_forks(open_page: Open) -> None:
    page = open_page()
    tree = page.get_by_role("navigation", name="Memories")
    tree.get_by_role("link", name="docs-early").wait_for()
    assert "fork at 3,000" in tree.locator("ul ul").inner_text()
    assert page.get_by_role("heading", name="Choose a memory").is_visible()
    accessible(page)


def test_an_answer_cites_lines_and_opens_them(open_page: Open) -> None:
    page = open_page("/#/m/docs")
    ask(page)
    answer = page.get_by_role("article", name="Answer")
    assert "OpenAI's chat completions" in answer.inner_text()
    page.get_by_role("list", name="Lines it came from").get_by_role("button").first.click()
    page.locator(".lines .hit").first.wait_for()
    hit = page.locator(".lines .hit").first
    assert "that agents speak already" in hit.inner_text() and hit.get_attribute("value") == "3"
    assert page.locator(".lines li").count() > 20
    accessible(page)


def test_each_word_shows_where_it_looked(open_page: Open) -> None:
    page = open_page("/#/m/docs")
    ask(page)
    slider = page.get_by_role("slider", name="Word")
    picture = page.locator(".fovea canvas")
    slider.focus()
    page.keyboard.press("Home")
    first = picture.get_attribute("aria-label")
    assert first.startswith("“speak” looked: overview")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert "“chat” looked" in picture.get_attribute("aria-label") or picture.get_attribute("aria-label") != first
    assert re.search(r"2 of|3 of|4 of", slider.get_attribute("aria-valuetext"))
    page.locator(".place").wait_for()
    page.locator(".place button").click()
    page.locator(".lines .hit").wait_for()
    page.locator(".words .w").nth(5).hover()
    assert page.locator(".words .w.at").count() == 1


def test_a_path_of_the_server_is_read(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="Read a folder").click()
    page.get_by_label("or a path of the server's").fill("notes")
    assert page.get_by_label("Name").input_value() == "notes"
    accessible(page)
    page.get_by_role("button", name="Read", exact=True).click()
    page.get_by_role("heading", name="notes").wait_for()
    assert "of 1 file" in page.locator(".facts").inner_text()


def test_a_folder_is_sent(open_page: Open, tmp_path: Path) -> None:
    folder = tmp_path / "my folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.md").write_text("# Title\n\nA sentence.\n" * 20)
    (folder / "sub" / "b.md").write_text("Another sentence.\n" * 20)
    (folder / "c.bin").write_bytes(b"\0\1\2\xff")
    page = open_page()
    page.get_by_role("button", name="Read a folder").click()
    page.get_by_label("A folder of yours").set_input_files(folder)
    page.get_by_text(re.compile("2 files, .* 1 file left out")).wait_for()
    page.get_by_role("button", name="Read", exact=True).click()
    page.get_by_role("heading", name="my-folder").wait_for()
    page.get_by_role("button", name="Source").click()
    page.get_by_role("button", name="my folder/sub/b.md").wait_for()
    assert "of 2 files" in page.locator(".facts").inner_text()


def test_another_model_words_the_answers(open_page: Open) -> None:
    page = open_page("/")
    models = [{"id": "nano", "answers": False}, {"id": "smollm2", "answers": True}]
    about = {"name": "foveal", "version": "", "writes": False, "reads_paths": False, "upload_bytes": 0}
    cited = {"path": "serving.md", "first_line": 3, "last_line": 3}
    told = [{"type": "delta", "text": "By HTTP."}, {"type": "done", "citations": [cited], "finish_reason": "stop"}]
    asked: list[Any] = []

    def answer(route: Any) -> None:
        asked.append(route.request.post_data_json)
        route.fulfill(body="".join(f"data: {json.dumps(event)}\n\n" for event in told), content_type=EVENTS)

    page.route("**/v1/server", lambda route: route.fulfill(json=about | {"models": models}))
    page.route("**/v1/memories/docs/ask", answer)
    page.reload()
    page.get_by_role("link", name=re.compile("^docs ")).first.click()
    assert page.get_by_label("Answer in the words of smollm2").is_checked()
    page.get_by_label("Ask this memory").fill("How?")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="serving.md:3").wait_for()
    assert "By HTTP." in page.get_by_role("article", name="Answer").inner_text()
    assert asked == [{"question": "How?", "with": "smollm2", "stream": True}]
    accessible(page)


def test_a_read_of_somebody_else_is_shown_with_the_time_left(open_page: Open, server: Running) -> None:
    from foveal.memory import Progress

    (shelf,) = server.service.registry.models["nano"].shelves.values()
    shelf.reading["large"] = Progress(2_000, 8_000, True, 100.0, 60.0)
    try:
        page = open_page()
        entry = page.get_by_role("link", name="large")
        entry.get_by_text("reading, 25 %, 1 min left").wait_for()
        assert page.get_by_role("progressbar", name="Reading large").is_visible()
        accessible(page)
    finally:
        del shelf.reading["large"]
    entry.wait_for(state="detached")  # the page looks again by itself


# ---------------------------------------------------------------------- forks


def test_a_conversation_is_forked_from_any_place(open_page: Open) -> None:
    page = open_page("/#/m/docs")
    ask(page)
    ask(page, "The nano was not trained to chat")
    assert page.get_by_role("article", name="Answer").count() == 2
    page.get_by_role("button", name="Fork here").first.click()
    assert page.get_by_role("article", name="Answer").count() == 1
    ask(page, "Errors have the shape of")
    assert page.get_by_text("fork 2 of 2").count() >= 1
    page.get_by_role("button", name="Previous fork").last.click()
    assert page.get_by_text("The nano was not trained").is_visible()
    page.reload()  # it is kept
    page.get_by_text("The nano was not trained").wait_for()
    page.get_by_role("button", name="Hits").click()
    page.locator(".hits li").first.wait_for()
    assert "tokens were known" in page.locator(".hits").inner_text()
    accessible(page)


def test_a_memory_is_forked(open_page: Open) -> None:
    page = open_page("/#/m/docs")
    page.get_by_role("button", name="Fork …").click()
    page.get_by_label("Name").fill("docs-half")
    page.get_by_label("Up to token").fill("2000")
    accessible(page)
    page.get_by_role("button", name="Fork", exact=True).click()
    page.get_by_role("heading", name="docs-half").wait_for()
    assert "a fork of docs at token 2,000" in page.locator(".facts").inner_text()


# ---------------------------------------------------------------------- stale, bytes


def test_a_file_that_changed_is_marked(open_page: Open, root: Path) -> None:
    file = root / "docs" / "serving.md"
    before = file.read_text()
    page = open_page("/#/m/docs")
    try:
        file.write_text(before + "\nMore.\n")
        ask(page)
        assert page.locator(".cite .tag").first.inner_text() == "changed since"
        page.locator(".cite").first.click()
        page.get_by_text("These are the lines as the memory read them").wait_for()
        page.reload()
        page.get_by_text("serving.md changed since it was read").wait_for()
        accessible(page)
    finally:
        file.write_text(before)


def test_bytes_stand_beside_those_of_others(open_page: Open) -> None:
    page = open_page("/#/m/docs")
    page.get_by_role("button", name="Bytes").click()
    table = page.get_by_role("table", name="Bytes of other architectures")
    table.wait_for()
    assert "DeepSeek-V3.2, 4 layers as here" in table.inner_text()
    assert "one for 128 tokens" in page.get_by_role("table", name="Bytes by kind").inner_text()
    accessible(page)


# ---------------------------------------------------------------------- what goes wrong


def test_a_memory_that_is_not_there(open_page: Open) -> None:
    page = open_page("/#/m/nothing", errors=True)
    page.get_by_role("alert").wait_for()
    assert "There is no memory nothing here" in page.get_by_role("alert").inner_text()
    accessible(page)


def test_a_server_that_is_gone(open_page: Open) -> None:
    page = open_page("/#/m/docs", errors=True)
    page.get_by_label("Ask this memory").wait_for()
    page.route("**/v1/**", lambda route: route.abort())
    page.get_by_label("Ask this memory").fill(CUE)
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    assert "cannot be reached" in page.get_by_role("alert").inner_text()
    page.reload()
    page.get_by_role("button", name="Try again").wait_for()
    page.unroute("**/v1/**")
    page.get_by_role("button", name="Try again").click()
    page.get_by_label("Ask this memory").wait_for()


def test_an_error_of_the_server_is_shown_in_its_words(open_page: Open) -> None:
    page = open_page("/#/m/docs", errors=True)
    said = {"error": {"message": "the cache is full; try again", "type": "x", "param": None, "code": None}}
    answer = {"status": 503, "content_type": "application/json", "body": json.dumps(said)}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**answer))
    page.get_by_label("Ask this memory").fill("x")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    assert page.get_by_role("alert").inner_text() == "the cache is full; try again"


def test_a_key_is_asked_for(open_page: Open, tmp_path: Path) -> None:
    with serving(tmp_path, keys=(key("alice", writes=False),)) as locked:
        page = open_page("/", url=locked.url, errors=True)
        page.get_by_role("heading", name="This server asks for a key").wait_for()
        accessible(page)
        page.get_by_label("Key").fill("wrong")
        page.keyboard.press("Enter")
        page.wait_for_timeout(300)
        page.get_by_label("Key").fill("alice")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Nothing has been read yet").wait_for()
        assert page.get_by_role("button", name="Read a folder").count() == 0  # this key may not


# ---------------------------------------------------------------------- for whom, where


def test_it_works_below_a_prefix(server: Running, browser: Any) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(LONG)
    outside: list[str] = []

    def without_prefix(route: Any) -> None:
        path = route.request.url.removeprefix(server.url)
        if not path.startswith("/some/where/"):
            outside.append(path)
        route.fulfill(response=route.fetch(url=server.url + path.removeprefix("/some/where")))

    page.route(f"{server.url}/**", without_prefix)
    page.goto(f"{server.url}/some/where/#/m/docs")
    page.get_by_role("heading", name="docs", exact=True).wait_for()
    page.locator(".fovea canvas").wait_for()
    page.unroute_all(behavior="ignoreErrors")
    context.close()
    assert outside == []


def test_the_keyboard_is_enough(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("link", name="docs-early").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent").strip() == "Skip to the conversation"
    for _ in range(6):
        page.keyboard.press("Tab")
        if "docs" in page.evaluate("document.activeElement.textContent"):
            break
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="docs", exact=True).wait_for()
    page.get_by_role("button", name="Bytes").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.id === 'panel-title'")
    page.keyboard.press("Escape")
    page.get_by_role("table").first.wait_for(state="detached")


@pytest.mark.parametrize("width", [1440, 900, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pictures_of_the_documents(open_page: Open, width: int, scheme: str) -> None:
    page = open_page("/#/m/docs", width=width, color_scheme=scheme)
    ask(page)
    page.locator(".place").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is beside the window"
    _picture(page, f"window-{width}-{scheme}")
    if width == 1440:
        page.locator(".words .w").nth(8).click()
        page.locator(".cite").first.click()
        page.locator(".lines .hit").first.wait_for()
        page.wait_for_timeout(500)
        _picture(page, f"window-source-{scheme}")


PICTURES = {"window-source-light", "window-source-dark", "window-900-light", "window-390-light"}


def _picture(page: Any, name: str) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = os.environ.get("FOVEAL_IMAGES")
    shot = image.open(io.BytesIO(page.screenshot()))
    assert shot.width == page.viewport_size["width"]
    if folder and name in PICTURES:
        Path(folder).mkdir(parents=True, exist_ok=True)
        shot.save(Path(folder) / f"{name}.webp", quality=82, method=6)


# ---------------------------------------------------------------------- a million tokens


FRAMES = """async () => {
  const slider = document.querySelector('.slider input');
  const times = [];
  let last = performance.now();
  for (let word = 0; word <= Number(slider.max); word++) {
    slider.value = word;
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    times.push(now - last);
    last = now;
  }
  return times;
}"""


def test_a_million_tokens_stay_fluid(open_page: Open, record_property: Any) -> None:
    tokens, files = 1 << 20, 4000
    size = tokens // files
    spans = [
        {"path": f"src/part{n % 40}/file{n}.py", "first": n * size, "after": (n + 1) * size, "outdated": False}
        for n in range(files)
    ]
    told = {"object": "memory.map", "name": "docs", "tokens": files * size, "files": spans}
    page = open_page("/")
    page.route("**/v1/memories/docs/map", lambda route: route.fulfill(json=told))
    page.route("**/v1/memories/docs/source?*", lambda route: route.fulfill(json=_line()))
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=_stream(files * size), content_type=EVENTS))
    page.get_by_role("link", name=re.compile("^docs ")).first.click()
    page.get_by_label("Ask this memory").fill("x")
    page.keyboard.press("Enter")
    page.locator(".words .w").nth(150).wait_for()
    page.get_by_role("slider", name="Word").press("Home")
    before = page.locator(".fovea canvas").screenshot()
    times = sorted(page.evaluate(FRAMES))
    assert len(times) >= 150 and page.locator(".fovea canvas").screenshot() != before
    middle, most = times[len(times) // 2], times[-max(1, len(times) // 20)]
    record_property("frames", {"words": len(times), "median_ms": round(middle, 1), "p95_ms": round(most, 1)})
    print(f"frames over 1M tokens in 4,000 files: {len(times)} words, median {middle:.1f} ms, 95 % below {most:.1f} ms")


EVENTS = "text/event-stream"


def _line() -> dict[str, Any]:
    return {
        "object": "memory.source",
        "name": "docs",
        "path": "src/a.py",
        "sha256": "",
        "outdated": False,
        "stale": False,
        "tokens": [0, 1],
        "total_lines": 1,
        "first_line": 1,
        "lines": ["x = 1"],
        "token_line": 1,
    }


def _stream(tokens: int) -> str:
    """An answer of 160 words, as the server would tell it of so many tokens."""
    chunks = []
    for word in range(160):
        picks = [[(word * 7919 * 4 + n * 52_361 * 4) % tokens // 4 * 4, 0.2 / (n + 1)] for n in range(48)]
        look = {
            "text": f" word{word}",
            "position": tokens + 20 + word,
            "window": {"first": tokens + word - 108, "span": 4, "share": [0.01] * 32},
            "picks": picks,
            "overview": {"span": 4096, "share": [((n * 37 + word) % 100) / 1e4 for n in range(257)]},
        }
        delta = {"content": look["text"], "attention": [look]}
        chunks.append({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    chunks.append({"choices": [{"index": 0, "delta": {"citations": []}, "finish_reason": "length"}]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
