"""Whether a still is cut, judged by the structure of its format."""

from typing import Literal

TIFF: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
TIFF_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes per value, for types of more than 1 byte
OFFSETS, COUNTS = (273, 324), (279, 325)  # tags: offsets and byte counts of strips or tiles
PNG, GIF = b"\x89PNG\r\n\x1a\n", (b"GIF87a", b"GIF89a")
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"  # of JPEG; neither occurs in the data of a scan


def still_is_truncated(data: bytes) -> bool:
    """Whether the end is missing; False where the format does not tell."""
    if data.startswith(b"\xff\xd8"):
        return data.rfind(END_OF_IMAGE) < data.rfind(START_OF_SCAN) or START_OF_SCAN not in data
    if data.startswith(PNG):
        return b"IEND" not in data
    if data.startswith(GIF):
        return not data.rstrip(b"\0").endswith(b";")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data[:4] in TIFF:
        return _tiff_end(data, TIFF[data[:4]]) > len(data)
    if data.startswith(b"BM"):
        return int.from_bytes(data[2:6], "little") > len(data)
    return data[4:8] == b"ftyp" and _boxes_end(data) > len(data)


def _tiff_end(data: bytes, order: Literal["little", "big"]) -> int:
    """End of the first directory, its values and its strips or tiles; stops once one reaches beyond the data."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    start = number(4, 4)
    end = start + 2 + 12 * number(start, 2)
    values: dict[int, list[int]] = {}
    for entry in range(start + 2, end, 12) if end <= len(data) else ():
        size, count = TIFF_SIZES.get(number(entry + 2, 2), 1), number(entry + 4, 4)
        at = entry + 8 if size * count <= 4 else number(entry + 8, 4)
        end = max(end, at + size * count)
        if end > len(data):
            return end
        values[number(entry, 2)] = [number(at + size * place, size) for place in range(count)]
    for offsets, counts in zip(OFFSETS, COUNTS, strict=True):
        end = max([end, *map(sum, zip(values.get(offsets, ()), values.get(counts, ()), strict=False))])
    return end


def _boxes_end(data: bytes) -> int:
    """End of the last AVIF box; a box of size 0 reaches to the end of the file."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        at += max(size, 8) if size else len(data)
    return at
