"""Read from headers how much a file should hold, where FFmpeg does not pass it on."""

from typing import Any

import fsspec

from featurize.media.errors import blamed

ASF_OBJECT = 24  # bytes of an object's header: GUID and size
WAV_MARKS = 0x7FFF_0000  # bytes: lengths from here on mean that it was not known
WAV_SLACK = 64  # bytes that writers may overcount
MP3_RATES = (44_100, 48_000, 32_000)  # Hz, of MPEG-1
MP3_SLOWER = {0x18: 1, 0x10: 2, 0x00: 4}  # divisors by version bits: MPEG-1, 2 and 2.5


def riff_is_truncated(uri: str) -> bool:
    """Whether the chunks of a RIFF file reach beyond its end. (One that a crash left without a length does not.)"""
    with blamed("RIFF"), fsspec.open(uri, "rb") as file:
        size, at = int(file.seek(0, 2)), 0
        while at + 8 <= size:
            file.seek(at)
            head = file.read(8)
            if not head.startswith(b"RIFF"):
                return False
            at += 8 + int.from_bytes(head[4:], "little")
    return at > size


def asf_is_truncated(uri: str) -> bool:
    """Whether the packets of an ASF file reach beyond its end. (An index after them may be missing.)"""
    with blamed("ASF"), fsspec.open(uri, "rb") as file:
        size, at = int(file.seek(0, 2)), 0
        for _ in range(2):  # the header, then the data
            file.seek(at)
            at += int.from_bytes(file.read(ASF_OBJECT)[16:], "little")
    return at > size


def wav_is_truncated(uri: str) -> bool:
    """Whether the samples of a WAV file reach beyond its end.

    FFmpeg clamps the duration to the bytes present. Writers that cannot seek back leave a placeholder length.
    """
    with blamed("WAV"), fsspec.open(uri, "rb") as file:
        size, at, long = int(file.seek(0, 2)), 12, 0
        while at + 8 <= size:
            file.seek(at)
            head = file.read(24)
            length = int.from_bytes(head[4:8], "little")
            if head.startswith(b"ds64"):  # the true length of a file beyond 4 GiB
                long = int.from_bytes(head[16:], "little")
            if head.startswith(b"data"):
                length = long or (length if length < WAV_MARKS else 0)
                return at + 8 + length > size + WAV_SLACK
            at += 8 + length + length % 2
    return True


def mp3_is_truncated(uri: str) -> bool:
    """Whether an MP3 has fewer bytes than its Xing header declares, if it has one."""
    with blamed("MP3"), fsspec.open(uri, "rb") as file:
        return int(file.seek(0, 2)) < _xing(_first_frame(file))[1]


def mp3_seconds(uri: str) -> float:
    """Seconds that the Xing header of an MP3 declares, 0.0 without one.

    FFmpeg does not distinguish this duration from one that it guessed.
    """
    with blamed("MP3"), fsspec.open(uri, "rb") as file:
        return _xing(_first_frame(file))[0]


def _first_frame(file: Any) -> bytes:
    file.seek(0)
    head = file.read(10)
    tag = 10 + sum((byte & 0x7F) << 7 * (3 - at) for at, byte in enumerate(head[6:]))
    file.seek(tag if head.startswith(b"ID3") else 0)
    return bytes(file.read(256))


def _xing(frame: bytes) -> tuple[float, int]:
    """Seconds and bytes that a Xing header declares; 0 for what it does not."""
    if len(frame) < 64 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0 or frame[2] & 0x0C == 0x0C:
        return 0.0, 0
    first = frame[1] & 0x18 == 0x18  # MPEG-1; others have half its rate and half its samples per frame
    mono = frame[3] & 0xC0 == 0xC0
    at = 4 + (17 if first == mono else 32 if first else 9)
    flags = frame[at + 7] if frame[at : at + 4] in (b"Xing", b"Info") else 0
    counts = [int.from_bytes(frame[at + place : at + place + 4], "big") for place in (8, 8 + 4 * (flags & 1))]
    rate = MP3_RATES[frame[2] >> 2 & 3] / MP3_SLOWER.get(frame[1] & 0x18, 1)
    return (flags & 1) * counts[0] * (1152 if first else 576) / rate, (flags >> 1 & 1) * counts[1]
