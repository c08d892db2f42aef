"""Whether a still's bytes end before its picture does, by the structure of its format."""

PNG, GIF = b"\x89PNG\r\n\x1a\n", (b"GIF87a", b"GIF89a")
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"  # of JPEG; neither occurs in the data of a scan


def is_cut(data: bytes) -> bool:
    """Whether the end is missing; False where the format does not tell."""
    if data.startswith(b"\xff\xd8"):
        return data.rfind(END_OF_IMAGE) < data.rfind(START_OF_SCAN) or START_OF_SCAN not in data
    if data.startswith(PNG):
        return b"IEND" not in data
    if data.startswith(GIF):
        return not data.rstrip(b"\0").endswith(b";")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data.startswith(b"BM"):
        return int.from_bytes(data[2:6], "little") > len(data)
    return data[4:8] == b"ftyp" and _boxes_end(data) > len(data)


def _boxes_end(data: bytes) -> int:
    """Where the last of the boxes that AVIF is made of ends; one of size 0 reaches to the end of the file."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        at += max(size, 8) if size else len(data)
    return at
