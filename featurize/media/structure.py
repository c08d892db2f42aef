"""Whether a file is cut, judged by the lengths that its parts declare, whatever FFmpeg makes of it."""

from collections.abc import Callable
from typing import Any

import fsspec

from featurize.media.errors import blamed

SHORTEST = 8  # bytes of the shortest part header
HEAD = 282  # bytes needed to tell a part's length: an Ogg page may need this many
MAX_GIF_BYTES = 1 << 28  # read at most
MXF = bytes.fromhex("060e2b34")  # prefix of every MXF key
MXF_HEADER = MXF + bytes.fromhex("020501010d0102010102")
W64 = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")
REAL = (b".RMF", b"PROP", b"CONT", b"MDPR", b"DATA")  # chunks of RealMedia
GIF_PARTS = {0x21: 2, 0x2C: 11}  # header bytes before the blocks of an extension or picture (a table may come between)


def container_is_truncated(uri: str) -> bool:
    """Whether the last part reaches beyond the end of the file; False where the format does not tell."""
    with blamed("its parts"), fsspec.open(uri, "rb") as file:
        size = int(file.seek(0, 2))
        head = _head(file, 0)
        if head.startswith((b"GIF87a", b"GIF89a")):
            file.seek(0)
            return _gif_is_truncated(file.read(MAX_GIF_BYTES))
        for mark, place, begin, length in FORMS:
            if head.startswith(mark, place):
                return _reaches_beyond(file, size, begin, length)
    return False


def _reaches_beyond(file: Any, size: int, at: int, length: Callable[[bytes], int]) -> bool:
    while at < size:
        step = length(_head(file, at))
        if not step:
            return size - at < SHORTEST
        at += step
    return at > size or (at == size and length in WITH_END)


def _head(file: Any, at: int) -> bytes:
    """The first bytes of a part, padded with zeros beyond the end of the file."""
    file.seek(at)
    return bytes(file.read(HEAD)).ljust(HEAD, b"\0")


# Length of a part from its first bytes; 0 if it declares none, or is no part of the format.


def _box(head: bytes) -> int:
    size = _big(head, 8, 8) if _big(head, 0, 4) == 1 else _big(head, 0, 4)
    return size if head[4:8].isalnum() and size >= 8 else 0


def _element(head: bytes) -> int:
    """A Matroska element: an id and a size, whose leading bits give their widths in bytes."""
    name = 9 - head[0].bit_length()
    width = 9 - head[name].bit_length()
    size = _big(head, name, width) & (1 << 7 * width) - 1
    return name + width + size if name <= 4 and width <= 8 and size != (1 << 7 * width) - 1 else 0


def _riff(head: bytes) -> int:
    return 8 + _little(head, 4, 4) if head.startswith(b"RIFF") else 0


def _w64_file(head: bytes) -> int:
    return _little(head, 16, 8) if head.startswith(W64) else 0


def _form(head: bytes) -> int:
    return 8 + _big(head, 4, 4) if head.startswith(b"FORM") else 0


def _asf_object(head: bytes) -> int:
    return _little(head, 16, 8)


def _flv_tag(head: bytes) -> int:
    return 15 + _big(head, 1, 3) if head[0] in (8, 9, 18) else 0


def _flac_block(head: bytes) -> int:
    return 4 + _big(head, 1, 3) if head[0] & 0x7F < 0x7F else 0


def _ogg_page(head: bytes) -> int:
    return 27 + head[26] + sum(head[27 : 27 + head[26]]) if head.startswith(b"OggS") else 0


def _caf_chunk(head: bytes) -> int:
    return 12 + _big(head, 4, 8) if head[4] < 0x80 else 0


def _png_chunk(head: bytes) -> int:
    return 12 + _big(head, 0, 4) if head[4:8] != b"IEND" else 0


def _ivf_frame(head: bytes) -> int:
    return 12 + _little(head, 0, 4)


def _real_chunk(head: bytes) -> int:
    """A RealMedia chunk; FFmpeg declares 10 bytes too many for DATA."""
    return _big(head, 4, 4) - 10 * head.startswith(b"DATA") if head[:4] in REAL else 0


def _obu(head: bytes) -> int:
    """An AV1 OBU: its size has seven bits in each byte (LEB128), the last of which is less than 128."""
    if not head[0] & 2:
        return 0
    at, size, shift = 1 + (head[0] >> 2 & 1), 0, 0
    while head[at] & 0x80 and shift < 49:
        size, at, shift = size | (head[at] & 0x7F) << shift, at + 1, shift + 7
    return at + 1 + (size | head[at] << shift)


def _mxf_value(head: bytes) -> int:
    """An MXF key, length and value; for the header, all up to the footer if it tells where that is."""
    if not head.startswith(MXF):
        return 0
    width = head[16] & 0x7F if head[16] & 0x80 else 0
    footer = _big(head, 17 + width + 24, 8) if head.startswith(MXF_HEADER) else 0
    return footer or 17 + width + (_big(head, 17, width) if width else head[16])


def _big(head: bytes, at: int, size: int) -> int:
    return int.from_bytes(head[at : at + size], "big")


def _little(head: bytes, at: int, size: int) -> int:
    return int.from_bytes(head[at : at + size], "little")


WITH_END = (_png_chunk,)  # formats with a part that marks the end
# Per format: magic bytes, their offset, the offset of the first part, and the length function.
FORMS: tuple[tuple[bytes | tuple[bytes, ...], int, int, Callable[[bytes], int]], ...] = (
    ((b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp"), 4, 0, _box),
    (b"\x1a\x45\xdf\xa3", 0, 0, _element),
    (b"RIFF", 0, 0, _riff),
    (b"FORM", 0, 0, _form),
    (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), 0, 0, _asf_object),
    (b"FLV", 0, 13, _flv_tag),
    (b"fLaC", 0, 4, _flac_block),
    (b"OggS", 0, 0, _ogg_page),
    (b"caff", 0, 8, _caf_chunk),
    (b"\x89PNG\r\n\x1a\n", 0, 8, _png_chunk),
    (b"DKIF", 0, 32, _ivf_frame),
    (b".RMF", 0, 0, _real_chunk),
    (b"\x12\x00\x0a", 0, 0, _obu),
    (MXF, 0, 0, _mxf_value),
    (W64, 0, 0, _w64_file),
)


def _gif_is_truncated(data: bytes) -> bool:
    at = 13 + _table(data[10]) if len(data) > 10 else 13
    while at < len(data) and data[at] in GIF_PARTS:
        picture = data[at] == 0x2C and at + 9 < len(data)
        at += GIF_PARTS[data[at]] + (_table(data[at + 9]) if picture else 0)
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return at >= len(data)


def _table(bits: int) -> int:
    """Bytes of a colour table; 0 if the flags say that there is none."""
    return 3 << (bits & 7) + 1 if bits & 0x80 else 0
