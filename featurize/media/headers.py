"""Bytes of headers that say how much a file holds, where FFmpeg does not pass on what they say."""

import fsspec

from featurize.media.errors import blamed

ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # begins the object that holds the file's size
ASF_SIZE = 40  # bytes from there to that size
MP3_RATES = (44_100, 48_000, 32_000)  # Hz, of MPEG-1
MP3_SLOWER = {0x18: 1, 0x10: 2, 0x00: 4}  # by the version's bits: MPEG-1, 2 and 2.5


def riff_is_cut(uri: str) -> bool:
    """Whether the chunks of a RIFF file reach beyond its end. (What a crash left without a length does not.)"""
    with blamed("RIFF"), fsspec.open(uri, "rb") as file:
        size, at = int(file.seek(0, 2)), 0
        while at + 8 <= size:
            file.seek(at)
            head = file.read(8)
            if not head.startswith(b"RIFF"):
                return False
            at += 8 + int.from_bytes(head[4:], "little")
    return at > size


def asf_is_cut(uri: str, share: float) -> bool:
    """Whether an ASF file has less than a share of the bytes that its header counts."""
    with blamed("ASF"), fsspec.open(uri, "rb") as file:
        size = int(file.seek(0, 2))
        file.seek(0)
        head = bytes(file.read(1 << 16))
    at = head.find(ASF_PROPERTIES)
    return at >= 0 and size < share * int.from_bytes(head[at + ASF_SIZE : at + ASF_SIZE + 8], "little")


def mp3_seconds(uri: str) -> float:
    """Seconds that the first frame of an MP3 counts if it is a header of Xing's, else 0.0.

    FFmpeg does not tell such a duration from one that it guessed.
    """
    with blamed("MP3"), fsspec.open(uri, "rb") as file:
        head = file.read(10)
        tag = 10 + sum((byte & 0x7F) << 7 * (3 - at) for at, byte in enumerate(head[6:]))
        file.seek(tag if head.startswith(b"ID3") else 0)
        frame = file.read(256)
    return _xing_seconds(frame)


def _xing_seconds(frame: bytes) -> float:
    if len(frame) < 64 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0 or frame[2] & 0x0C == 0x0C:
        return 0.0
    first = frame[1] & 0x18 == 0x18  # of MPEG-1; others have half its rate and half its samples in a frame
    mono = frame[3] & 0xC0 == 0xC0
    at = 4 + (17 if first == mono else 32 if first else 9)
    if frame[at : at + 4] not in (b"Xing", b"Info") or not frame[at + 7] & 1:
        return 0.0
    rate = MP3_RATES[frame[2] >> 2 & 3] / MP3_SLOWER.get(frame[1] & 0x18, 1)
    return int.from_bytes(frame[at + 8 : at + 12], "big") * (1152 if first else 576) / rate
