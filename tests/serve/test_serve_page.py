"""The page in a real browser: what people see is what the server answers, and nothing leaves the server."""

import base64
import shutil

import pytest

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: make browser installs Debian's")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, client):
    """A page on the server. At its end no request has left the server, and the console has no error."""
    context = browser.new_context(base_url=str(client.base_url), permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    requests, faults = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    context.close()
    assert requests
    inside = (f"{client.base_url}", "data:", f"blob:{client.base_url}")
    assert [url for url in requests if not url.startswith(inside)] == []
    assert faults == []


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
    return {box.locator("h3").inner_text(): box.locator(".text").inner_text() for box in boxes}


def test_a_clip_is_asked_by_both_senses_and_by_each(page, client, media):
    page.goto("/")
    upload(page, media / "red-loud.mp4")
    page.check("#compare")
    page.click("#options summary")
    page.fill("#max-tokens", "8")
    ask(page, "What?")
    for way, senses in {
        "Sight and sound": ["visual", "audio"],
        "Sight only": ["visual"],
        "Sound only": ["audio"],
    }.items():
        data = base64.b64encode((media / "red-loud.mp4").read_bytes()).decode()
        video = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
        said = client.chat([video, {"type": "text", "text": "What?"}], modalities_in=senses)
        assert answers(page)[way] == said.json()["choices"][0]["message"]["content"]
