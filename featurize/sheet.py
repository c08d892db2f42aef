"""A contact sheet: the frames that an encoder takes of an item, each with its time."""

from PIL import Image, ImageDraw, ImageFont

from featurize.media import Frames, Isolated, MediaError, read_image, read_video
from store import MediaItem, UserError

SIZE = 224  # side of a frame in pixels; square, as encoders take frames
LINE = 22  # height of the line with the time
GAP = 6
COLUMNS = 8
SECONDS = 600.0  # that decoding may take
GROUND, INK = (255, 255, 255), (40, 40, 40)


def contact_sheet(item: MediaItem, count: int) -> Image.Image:
    """The `count` frames of a film on the uniform grid, or a still, in rows of 8. Decoded in a process of its own.

    Raises:
        UserError: the item has no frames, or they cannot be decoded.
    """
    try:
        with Isolated(seconds=SECONDS) as isolated:
            frames = isolated(_frames, item, count)
    except MediaError as error:
        raise UserError(f"{item.key}: {error.code}: {error.reason}") from None
    shown = frames.index.tolist()
    columns, rows = min(COLUMNS, len(shown)), -(-len(shown) // COLUMNS)
    width, height = SIZE + GAP, SIZE + LINE + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), GROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for place, number in enumerate(shown):
        x, y = GAP + place % COLUMNS * width, GAP + place // COLUMNS * height
        sheet.paste(Image.fromarray(frames.pixels[SIZE][number]), (x, y))
        said = f"{place + 1}" + (f": {frames.times[place]:.2f} s" if frames.times else "")
        draw.text((x + 2, y + SIZE + 2), said, INK, font)
    return sheet


def _frames(item: MediaItem, count: int) -> Frames:
    if item.kind == "audio":
        raise MediaError("absent", "a sound file has no frames")
    if item.kind == "image":
        return read_image(item.uri, [SIZE])
    return read_video(item.uri, [SIZE], count, item.start, item.end, item.fps)
