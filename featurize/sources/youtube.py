"""YouTube ids in the names that downloaders and cutters give to files."""

import re
from collections.abc import Iterator

YOUTUBE = r"[A-Za-z0-9_-]{11}"
# What cutters and downloaders add: a scene's number, bounds, a format's code, the number of a second copy.
_ADDED = (
    r"(?:(?i:[-_ ]+(?:scene|part|clip|seg|segment|chunk)[-_ ]*\d+)|_+\d+(?:\.\d+)?|\.f\d+(?:-\d+)?"
    r"|[-_]\d{3,4}p| ?\(\d+\)|[-_](?:audio|video|clip|trimmed|cut))*"
)
_ALONE = re.compile(rf"(?:v_|Y|yt[-_]|youtube[-_])?({YOUTUBE}){_ADDED}")  # data sets' own
_BRACKETS = re.compile(rf"\[(?:youtube[- ])?({YOUTUBE})\]")  # yt-dlp: `Title [id]`
_TITLED = re.compile(rf".+[-_ ]({YOUTUBE}){_ADDED}")  # youtube-dl: `Title-id`
_LEADS = re.compile(rf"({YOUTUBE})[-_ ].+")
_SORTS = re.compile(r"[a-z]+|[A-Z]+|[0-9]+|[_-]+")
RANDOM = 5  # runs of small letters, capitals, digits or signs: nearly all ids have as many, words and dates fewer


def youtube_ids(stem: str) -> Iterator[tuple[str, bool]]:
    """The ids that a file's stem may hold, each with whether it is certain rather than maybe a word of a title."""
    if found := _ALONE.fullmatch(stem):
        yield found[1], True
    for id in _BRACKETS.findall(stem):
        yield id, True
    for form in (_TITLED, _LEADS):
        if found := form.fullmatch(stem):
            yield found[1], len(_SORTS.findall(found[1])) >= RANDOM
