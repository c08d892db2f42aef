"""What a header promises, as far as it counts frames or seconds truly: half a file must not pass for a whole one.

Much that FFmpeg calls a number of frames or a duration does not count them: AVI's is the number of its time slots, of a
sound without a header it is a guess from the bit rate, and of Matroska, FLV and ASF it is the longest stream's.
"""

import av

from featurize.media.errors import MediaError, blamed
from featurize.media.file import open_container
from featurize.media.headers import asf_is_cut, mp3_is_cut, mp3_seconds, riff_is_cut, wav_is_cut
from featurize.media.packets import Packets
from featurize.media.structure import is_cut

SHARE = 0.98  # a file that holds less than this share of what its header promises is truncated, bytes missing or not
SLACK_FRAMES = 1  # ... unless it is only this much short
SLACK_SECONDS = 0.25  # ... or this much, where the header counts seconds
EXACT = 1e-3  # ... or, of a sound whose file lacks bytes, this much
UNKNOWN = 0xFFFFFFFF  # frames that the header of an IVF film counts while it is written
LONGEST = ("matroska", "flv")  # formats whose header has one duration, that of the longest stream
# Formats whose parts tell best where they end.
SIZED = ("matroska", "flv", "ogg", "gif", "apng", "ivf", "obu", "rm", "mxf", "w64", "caf")
# The same, where an index or a tag may end beyond the file: what matters is told apart.
PACKED = {"asf": asf_is_cut, "wav": wav_is_cut, "mp3": mp3_is_cut}
# Formats whose headers count the samples of each stream.
COUNTED = ("mov", "wav", "w64", "flac", "aiff", "au", "caf", "ape", "wv", "tta", "tak", "mpc", "mpc8", "dsf")


def check_video(uri: str, container: av.container.InputContainer, stream: av.VideoStream, packets: Packets) -> None:
    """See that a video stream goes on as long as the header promises.

    Raises:
        MediaError: it does not (`truncated`).
    """
    if _format(container) == "avi":
        slots = stream.frames  # each may be left empty: packets are fewer, and the last ones may be empty too
        if packets.end - packets.partial < slots and riff_is_cut(uri):
            raise MediaError("truncated", f"ends at frame {packets.end} of the {slots} that the header promises")
    ticks = stream.frames if _format(container) == "ivf" else 0  # some writers count frames, others their time
    if ticks < UNKNOWN and max(packets.held, packets.end) < SHARE * ticks - SLACK_FRAMES:
        raise MediaError("truncated", f"{packets.held} of the {ticks} frames that the header promises")
    seconds = float(packets.end * (stream.time_base or 0))
    if _format(container) == "mov" and not stream.frames:  # fragments: a header may count their seconds
        _check_seconds(seconds, float((stream.duration or 0) * (stream.time_base or 0)))
    check_end(uri, container, stream, seconds)


def frames_promised(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Packets that the header promises, 0 if it does not say; to be asked before any is read.

    An edit list makes FFmpeg leave packets out of MP4, and fragments add some: its index knows, the header does not.
    """
    if _format(container) == "mov":
        return len(stream.index_entries)
    return 0


def check_frames(uri: str, packets: Packets, promised: int) -> None:
    """See that so many packets are there.

    Raises:
        MediaError: they are fewer (`truncated`), or none (`unreadable`).
    """
    if packets.held < SHARE * promised - SLACK_FRAMES or (packets.held - packets.partial < promised and is_cut(uri)):
        raise MediaError("truncated", f"{packets.held} of the {promised} frames that the header promises")
    if not packets.count:
        raise MediaError("unreadable", "the video stream holds no frames")


def seconds_promised(uri: str, container: av.container.InputContainer, stream: av.AudioStream) -> float:
    """Seconds of sound that the header promises, 0.0 if it does not say."""
    if _format(container) == "mp3":
        return mp3_seconds(uri)
    if _format(container) == "avi":  # FFmpeg cuts the duration down to what the bytes allow, and keeps the number
        return float(stream.frames * (stream.time_base or 0)) if riff_is_cut(uri) else 0.0
    return float((stream.duration or 0) * (stream.time_base or 0)) if _format(container) in COUNTED else 0.0


def check_sound(
    uri: str, container: av.container.InputContainer, stream: av.AudioStream, seconds: float, promised: float
) -> None:
    """See that a sound is as long as was promised, and its file.

    Raises:
        MediaError: it is shorter (`truncated`), or holds nothing (`unreadable`).
    """
    if seconds < SHARE * promised - SLACK_SECONDS or (seconds < promised - EXACT and is_cut(uri)):
        raise MediaError("truncated", f"{seconds:.1f} s of the {promised:.1f} s of sound that the header promises")
    check_end(uri, container, stream, seconds)
    if not seconds:
        raise MediaError("unreadable", "the audio stream holds no samples")


def check_end(uri: str, container: av.container.InputContainer, stream: av.stream.Stream, seconds: float) -> None:
    """See that a file is as long as it promises: if this stream ends earlier, at `seconds`, another may be longer.

    Raises:
        MediaError: none is (`truncated`).
    """
    fragments = _format(container) == "mov" and stream.type == "video" and not stream.frames
    parted = is_cut if fragments or _format(container) in SIZED else PACKED.get(_format(container))
    if parted and parted(uri):
        raise MediaError("truncated", "the file ends before its last part does")
    guessed = stream.duration is not None  # these headers give the whole file's alone; a stream's is from its bit rate
    promised = 0.0 if guessed or _format(container) not in LONGEST else (container.duration or 0) / 1e6
    if seconds < SHARE * promised - SLACK_SECONDS:
        _check_seconds(max(seconds, _last_end(uri)), promised)


def _check_seconds(end: float, promised: float) -> None:
    if end < SHARE * promised - SLACK_SECONDS:
        raise MediaError("truncated", f"{end:.1f} s of the {promised:.1f} s that the header promises")


def _format(container: av.container.InputContainer) -> str:
    return str(container.format.name).split(",", 1)[0]


def _last_end(uri: str) -> float:
    """When the last packet of any stream ends, in seconds. Nothing is decoded."""
    end = 0.0
    with open_container(uri) as container, blamed("FFmpeg"):
        for packet in container.demux():
            at = packet.pts if packet.pts is not None else packet.dts
            if at is not None and packet.size:
                end = max(end, float((at + (packet.duration or 0)) * packet.time_base))
    return end
