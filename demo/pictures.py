"""`python -m demo.pictures`: pictures of the page for the docs, after `make demo`; needs Chromium (`make browser`)."""

import io
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

from store import parse_settings

RUN = Path("runs/demo")
CLIP = RUN / "corpus" / "clips" / "heldout011.mp4"
FOLDER = Path("docs/images")
QUESTIONS = ("What do you see and hear?", "Name the colour and the pitch.")
WIDE, NARROW = ViewportSize(width=1280, height=800), ViewportSize(width=360, height=740)
COLOURS = 256  # of a picture


def main() -> None:
    """Take all pictures."""
    with _server() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(base_url=url, viewport=WIDE, device_scale_factor=1.5)
        page.goto("/")
        page.set_input_files("#file", CLIP)
        page.check("#compare", timeout=120_000)
        _ask(page, "Hello?")  # so that the encoders are loaded
        page.click("#restart")
        for question in QUESTIONS:
            _ask(page, question)
        page.mouse.click(1, 1)  # away from the text field
        page.evaluate("scrollTo(0, 0)")
        _take(page, "page-light", "light")
        _take(page, "page-dark", "dark")
        page.set_viewport_size(NARROW)
        page.evaluate("document.querySelector('.sense').scrollIntoView()")
        _take(page, "page-narrow", "light")
        page.set_viewport_size(WIDE)
        page.goto("/#/stores/demo")
        page.locator(".items li").first.wait_for()
        _take(page, "page-store", "light")
        page.goto(f"/#/stores/demo/clips-{CLIP.stem}-mp4")
        page.locator("#stores .waveform").wait_for()
        page.wait_for_timeout(2000)  # the player fades its own signs
        _take(page, "page-item", "light")
        browser.close()


def _ask(page: Page, question: str) -> None:
    page.fill("#question", question)
    page.keyboard.press("Enter")
    page.locator("#send").wait_for(timeout=120_000)


@contextmanager
def _server() -> Iterator[str]:
    """The URL of a server of the demo's checkpoint and store."""
    from serve.api.listening import listen  # not at the top: decoding processes import this module
    from serve.api.server import make_server
    from serve.api.settings import ApiSettings
    from serve.assistant import Assistant

    stores = {"demo": str(RUN / "store")}
    data = {"checkpoint": str(RUN / "stage2" / "checkpoint"), "port": 0, "stores": stores, "default_tokens": 32}
    settings = parse_settings(ApiSettings, data, "pictures")
    listener = listen(settings)
    server = make_server(Assistant.load(settings.checkpoint), settings, [])
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def _take(page: Page, name: str, scheme: str) -> None:
    """Write a picture with few colours, which keeps it small."""
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    image = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    FOLDER.mkdir(parents=True, exist_ok=True)
    image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
