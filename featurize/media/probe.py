"""Check by its header alone whether a file can be opened as its kind."""

from featurize.media.errors import MediaError
from featurize.media.file import check_file, open_container
from featurize.media.image import open_image
from featurize.media.stills import is_folder, stills_of
from store import Kind


def probe(uri: str, kind: Kind) -> None:
    """Open a file and read its header.

    Raises:
        MediaError: the file is missing, empty, unreadable, truncated or too large, or holds neither pictures nor sound.
    """
    if kind == "video" and is_folder(uri):
        with open_image(f"{uri.rstrip('/')}/{stills_of(uri)[0]}"):
            return
    check_file(uri)
    if kind != "image":
        with open_container(uri) as container:
            if not container.streams.video and not container.streams.audio:
                raise MediaError("unreadable", "neither a video nor an audio stream")
        return
    with open_image(uri):
        pass
