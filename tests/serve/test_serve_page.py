"""The page in a real browser: what people see is what the server answers, and nothing leaves the server."""

import base64
import json
import shutil
import subprocess
import time

import av
import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from store import (
    Candidate,
    ColumnSpec,
    Conversation,
    Corpus,
    Failure,
    Feature,
    Storage,
    Turn,
    create_column,
    list_columns,
    save_conversations,
)

CHROMIUM = shutil.which("chromium")
KEY = "a-key-of-this-test"
WAYS = {"Sight and sound": ["visual", "audio"], "Sight only": ["visual"], "Sound only": ["audio"]}
HOSTILE = "<img src=x onerror=alert(1)>"
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: make browser installs Debian's")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browsed(tmp_path_factory, trained, media):
    """A store of 136 items with random numbers in the checkpoint's columns: some failed, some are not encoded yet."""
    storage = Storage(tmp_path_factory.mktemp("browsed"))
    corpus = Corpus()
    names = ["red-loud.mp4", "silent.mp4", "low.wav", "blue.png"]
    kinds = ["video", "video", "audio", "image"]
    own = [Candidate(name, str(media / name), kind) for name, kind in zip(names, kinds, strict=True)]
    gone = [Candidate(f"gone/{i:03}.mp4", f"/nowhere/{i:03}{HOSTILE}.mp4", "video") for i in range(132)]
    corpus.append([*own, *gone], shard_size=8)
    corpus.save(storage)
    texts = ColumnSpec(
        name="captions", modality="visual", numerics={}, features={"caption": Feature(shape=(2,), dtype="text")}
    )
    rng = np.random.default_rng(0)
    for spec in [*(column.spec for column in list_columns(Storage(trained / "store"))), texts]:
        column = create_column(storage, spec, {})
        for shard, items in list(corpus.shards.items())[:-1]:
            with column.write_shard(shard) as writer:
                for item in items:
                    if failure := failure_of(item, spec):
                        writer.fail(failure)
                    else:
                        writer.add(
                            item.key, arrays_of(item, spec, rng), {"times": [0.0, 0.25, 0.5, 0.75], "seconds": 1.5}
                        )
    turns = (Turn(f"Asked {HOSTILE}", "visual", f"Said {HOSTILE}"),)
    save_conversations(storage, "talk", [Conversation(f"id {HOSTILE}", item.key, turns) for item in corpus.items])
    return storage


def failure_of(item, spec):
    """Sight fails for every tenth item whose file is gone; a still has no sound, nor a sound pictures."""
    if item.kind == ("image" if spec.modality == "audio" else "audio") or (item.key, spec.modality) == (
        "silent-mp4",
        "audio",
    ):
        return Failure(key=item.key, code="absent", reason="no such stream")
    if item.key.startswith("gone") and item.key[7] == "0" and spec.modality == "visual":
        return Failure(key=item.key, code="truncated", reason=f"FFmpeg: the end is missing: {item.uri}")
    return None


def arrays_of(item, spec, rng):
    if "caption" in spec.features:
        return {"caption": np.array(["a red ground", HOSTILE])}
    shapes = {name: [4 if n is None else n for n in feature.shape] for name, feature in spec.features.items()}
    return {name: rng.standard_normal(shapes[name]).astype(f.dtype) for name, f in spec.features.items()}


@pytest.fixture(scope="module")
def locked(serving, browsed, trained):
    """A client, with the key, of a server that wants one."""
    stores = {"browsed": browsed.root, "clips": str(trained / "store")}
    with serving(keys=[KEY], stores=stores) as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        yield client


@pytest.fixture
def open_page(browser):
    """Opens pages. In the end no request has left their servers, and the console has had no error."""
    contexts, requests, faults, inside = [], [], [], ["data:"]

    def open_at(url):
        contexts.append(browser.new_context(base_url=url, permissions=["clipboard-read", "clipboard-write"]))
        page = contexts[-1].new_page()
        inside.extend([url, f"blob:{url}"])
        page.on("request", lambda request: requests.append(request.url))
        page.on(
            "console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto("/")
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert requests
    assert [url for url in requests if not url.startswith(tuple(inside))] == []
    assert [fault for fault in faults if "401" not in fault] == []  # Chromium writes that of a key that is asked for


@pytest.fixture
def page(open_page, client):
    return open_page(str(client.base_url))


@pytest.fixture
def locked_page(open_page, locked):
    """A page that has been given the key, after a wrong one."""
    page = open_page(str(locked.base_url))
    for key in ("wrong-key", KEY):
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Continue").click()
        if key != KEY:
            page.get_by_text("The server does not know this key.").wait_for()
    page.get_by_role("dialog").wait_for(state="hidden")
    return page


def until(is_so, seconds=30):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def upload(page, path):
    page.set_input_files("#file", path)
    page.locator("#clip").wait_for(timeout=60_000)


def ask(page, question):
    """Ask, and wait for the ends of all answers."""
    page.fill("#question", question)
    page.keyboard.press("Enter")
    page.locator("#send").wait_for(timeout=60_000)


def answers(page):
    """The answers to the last question, by their headings."""
    boxes = page.locator(".turn").last.locator(".answer").all()
    return {box.locator("h3").inner_text(): box.locator(".text").text_content() for box in boxes}


def limit(page, tokens):
    page.click("#options summary")
    page.fill("#max-tokens", str(tokens))


def text_of(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def test_a_clip_is_asked_by_both_senses_and_by_each(page, client, media):
    """Side by side, each answer is the API's by those senses, and each has a history of its own."""
    upload(page, media / "red-loud.mp4")
    assert page.locator(".frames .time").all_inner_texts() == ["0.00 s", "0.40 s", "0.80 s", "1.20 s"]
    assert page.locator(".segments").inner_text() == "0.00 s to 1.60 s"
    page.check("#compare")
    limit(page, 8)
    ask(page, "What?")
    first = answers(page)
    ask(page, "Sure?")
    second = answers(page)
    data = base64.b64encode((media / "red-loud.mp4").read_bytes()).decode()
    video = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
    content = [video, {"type": "text", "text": "What?"}]
    assert first.keys() == WAYS.keys()
    for way, senses in WAYS.items():
        assert first[way] == text_of(client.chat(content, modalities_in=senses))
        history = [{"role": "assistant", "content": first[way]}, {"role": "user", "content": "Sure?"}]
        messages = [{"role": "user", "content": content}, *history]
        assert second[way] == text_of(client.chat(messages, modalities_in=senses))
    page.uncheck("#compare")
    page.get_by_role("switch", name="Sound").uncheck()
    ask(page, "Alone?")
    assert answers(page).keys() == {"Sight only"}
    by_sight = page.locator(".answer.visual").last
    assert "what is heard can only be guessed" in by_sight.inner_text(), "else a lucky guess looks like a leak"
    assert "guessed" not in page.locator(".answer.both").last.inner_text()


def test_the_copied_command_asks_the_same(page, client, media, tmp_path):
    """Whatever a question and a file are called, the shell reads them as text."""
    name = 'it\'s $(touch harm) "`x`".mp4'
    shutil.copy(media / "red-loud.mp4", tmp_path / name)
    upload(page, tmp_path / name)
    limit(page, 8)
    ask(page, 'Is it $HOME, `id`, \\ or "red"?')
    page.get_by_role("button", name="Copy as curl").click()
    command = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    events = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("data: {")]
    said = "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])
    assert said == answers(page)["Sight and sound"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_answer_can_be_stopped(page, client):
    """What was written stays; the server ends the answer."""
    limit(page, 1024)
    page.fill("#question", "Say something.")
    page.click("#send")
    page.locator(".answer .text:not(:empty)").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("stopped").wait_for()
    assert answers(page)["Words only"]
    until(lambda: "avllm_requests_running 0.0" in client.get("/metrics").text)


def test_what_cannot_be_used_is_said_in_plain_words(page, client, media, bad_media):
    page.set_input_files("#file", bad_media / "text.mp4")
    page.get_by_text("text.mp4 cannot be used").wait_for(timeout=60_000)
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"x"})
    page.get_by_text("files of this kind cannot be asked about").wait_for()
    upload(page, media / "low.wav")
    assert page.locator(".sense").count() == 1
    page.get_by_text("By sound only").wait_for()


def test_a_file_that_the_browser_cannot_play_is_shown_by_its_frames(page, tmp_path):
    with av.open(str(tmp_path / "old.avi"), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 32, "yuv420p"
        for shade in range(0, 200, 10):
            frame = av.VideoFrame.from_ndarray(np.full((32, 64, 3), shade, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
    upload(page, tmp_path / "old.avi")
    page.get_by_text("This browser cannot play the file").wait_for()
    page.locator(".frames button").nth(2).click()
    assert page.locator(".still img").get_attribute("alt") == "Frame 3"
    assert page.locator(".frames [aria-current]").count() == 1


def test_a_store_is_browsed_searched_and_asked(locked_page, locked, trained):
    """Its texts are shown as texts, and an item's answer is the API's."""
    page = locked_page
    page.get_by_role("link", name="Stores").first.click()
    page.get_by_role("link", name="browsed").click()
    page.get_by_text("136 items").wait_for()
    sight = page.locator(".columns li", has_text="clip-vit")
    assert sight.locator(".counts").inner_text().split("\n") == [
        "114 usable",
        "1 without pictures",
        "13 failed",
        "8 not encoded yet",
    ]
    rows = page.locator(".items li")
    expect(rows).to_have_count(50)
    page.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(100)
    page.fill("#search", "E-13")
    expect(rows).to_have_count(2)
    page.fill("#search", "")
    sight.get_by_role("button", name="13 failed").click()
    expect(rows).to_have_count(13)
    assert rows.first.locator(".reason").inner_text() == f"truncated FFmpeg: the end is missing: 000{HOSTILE}.mp4"
    page.get_by_role("button", name="Show all items").click()
    page.get_by_role("link", name="gone-001-mp4").click()
    page.get_by_text("Its file is not on this machine any more.").wait_for()
    assert page.locator(".captions li").all_inner_texts() == ["a red ground", HOSTILE]
    assert page.locator(".replied").inner_text() == f"Said {HOSTILE}"
    page.get_by_role("button", name="Ask about this item").click()
    assert page.locator("#question").get_attribute("placeholder") == f"Asked {HOSTILE}"
    limit(page, 8)
    ask(page, "What?")
    item = {"type": "store_item", "store_item": {"store": "browsed", "key": "gone-001-mp4"}}
    assert answers(page)["Sight and sound"] == text_of(locked.chat([item, {"type": "text", "text": "What?"}]))


def test_a_player_gets_ranges_of_an_items_file_by_its_link_alone(locked, media):
    """A link is for one file and some hours; no path that a client names is ever opened."""
    url = locked.get("/page/stores/browsed/items/red-loud-mp4").json()["url"]
    whole = (media / "red-loud.mp4").read_bytes()
    anonymous = httpx.Client(base_url=locked.base_url)
    part = anonymous.get(url, headers={"Range": "bytes=100-299"})
    assert (part.status_code, part.content) == (206, whole[100:300])
    assert part.headers["content-type"] == "video/mp4"
    for other in (
        url.replace("red-loud-mp4", "silent-mp4"),
        url.replace("until=", "until=9"),
        url.replace("browsed", "clips"),
        url.replace("signature=", "signature=0"),
        "/media/browsed/red-loud-mp4",
        "/media/browsed/red-loud-mp4?until=99999999999&signature=é",
    ):
        assert anonymous.get(other).status_code == 403, other
    for path in ("/media/..%2f..%2fetc/passwd", "/static/..%2f..%2fkeys.py", "/static/../routes.py"):
        assert anonymous.get(path).status_code in (401, 403, 404), path
    for path in (
        "/page/about",
        "/page/stores/browsed",
        "/page/stores/browsed/items",
        "//page/about",
        "/static/../page/about",
    ):
        assert anonymous.get(path).status_code in (401, 404), path


def test_the_page_is_accessible_in_both_schemes_and_on_narrow_screens(locked_page, media):
    """axe-core finds nothing serious; nothing scrolls sideways at 320 pixels; keys reach the frames."""
    page = locked_page
    page.set_viewport_size({"width": 320, "height": 640})
    upload(page, media / "red-loud.mp4")
    page.check("#compare")
    limit(page, 8)
    ask(page, "What?")
    page.uncheck("#compare")
    page.get_by_role("switch", name="Sound").uncheck()
    page.locator(".frames button").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.title") == "Frame at 0.40 s"
    places = {"#/": "#turns h2", "#/stores/browsed": ".items li", "#/stores/browsed/gone-010-mp4": "#stores .sense"}
    for where, content in places.items():
        page.goto(f"/{where}")
        page.locator(content).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found = Axe().run(page).response["violations"]
            assert [each for each in found if each["impact"] in ("serious", "critical")] == [], (where, scheme)
