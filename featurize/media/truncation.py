"""When a file counts as truncated: half of one must not pass for a whole one.

It is compared with the frames or seconds that its header promises, and with where its parts say that it ends.

FFmpeg's frame counts and durations are not always true counts: in AVI they count time slots, for sound without a header
they are guessed from the bit rate, and in Matroska, FLV and ASF they are those of the longest stream.
"""

import av

from featurize.media.errors import MediaError, blamed
from featurize.media.file import open_container
from featurize.media.headers import asf_is_truncated, mp3_is_truncated, mp3_seconds, riff_is_truncated, wav_is_truncated
from featurize.media.packets import Packets
from featurize.media.structure import container_is_truncated

HELD_SHARE = 0.98  # a file with less than this share of what its header promises is truncated, bytes missing or not
SLACK_FRAMES = 1  # ... unless it is only this much short
SLACK_SECONDS = 0.25  # ... or this much, where the header counts seconds
EXACT = 1e-3  # ... or this much, for a sound whose file lacks bytes
UNKNOWN = 0xFFFFFFFF  # frame count in an IVF header while the film is being written
# Formats whose header has one duration, that of the longest stream; FFmpeg gives it to no stream. (That of ASF it gives
# to each stream: there the packets tell, see `PACKED`.)
ONE_DURATION = ("matroska", "flv")
# Formats whose parts best tell where the file should end.
SIZED = ("matroska", "flv", "ogg", "gif", "apng", "ivf", "obu", "rm", "mxf", "w64", "caf")
# Likewise, but an index or a tag at the end may be missing: these functions judge the media data alone.
PACKED = {"asf": asf_is_truncated, "wav": wav_is_truncated, "mp3": mp3_is_truncated}
# Formats whose headers count the samples of each stream.
COUNTED = ("mov", "wav", "w64", "flac", "aiff", "au", "caf", "ape", "wv", "tta", "tak", "mpc", "mpc8", "dsf")


def check_video(uri: str, container: av.container.InputContainer, stream: av.VideoStream, packets: Packets) -> None:
    """Check that a video stream is as long as the header promises.

    Raises:
        MediaError: it is shorter (`truncated`).
    """
    if _format(container) == "avi":
        slots = stream.frames  # a slot may be empty: packets may be fewer, and the last ones empty
        if packets.end - packets.partial < slots and riff_is_truncated(uri):
            raise MediaError("truncated", f"ends at frame {packets.end} of the {slots} that the header promises")
    ticks = stream.frames if _format(container) == "ivf" else 0  # some writers count frames, others time units
    if ticks < UNKNOWN and max(packets.held, packets.end) < HELD_SHARE * ticks - SLACK_FRAMES:
        raise MediaError("truncated", f"{packets.held} of the {ticks} frames that the header promises")
    seconds = float(packets.end * (stream.time_base or 0))
    if _format(container) == "mov" and not stream.frames:  # fragmented: a header may tell the seconds
        _check_seconds(seconds, float((stream.duration or 0) * (stream.time_base or 0)))
    check_file_end(uri, container, stream, seconds)


def frames_promised(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Number of packets that the header promises, 0 if unknown; call before any is read.

    In MP4, edit lists drop packets and fragments add some: FFmpeg's index knows, the header does not.
    """
    if _format(container) == "mov":
        return len(stream.index_entries)
    return 0


def check_frames(uri: str, packets: Packets, promised: int) -> None:
    """Check that as many packets as promised are there, and that they hold frames.

    Raises:
        MediaError: there are fewer (`truncated`), or no frames (`unreadable`).
    """
    if packets.held < HELD_SHARE * promised - SLACK_FRAMES or (
        packets.held - packets.partial < promised and container_is_truncated(uri)
    ):
        raise MediaError("truncated", f"{packets.held} of the {promised} frames that the header promises")
    if not packets.count:
        raise MediaError("unreadable", "the video stream holds no frames")


def seconds_promised(uri: str, container: av.container.InputContainer, stream: av.AudioStream) -> float:
    """Seconds of sound that the header promises, 0.0 if unknown."""
    if _format(container) == "mp3":
        return mp3_seconds(uri)
    if _format(container) == "avi":  # FFmpeg clamps the duration to the bytes present, but not the frame count
        return float(stream.frames * (stream.time_base or 0)) if riff_is_truncated(uri) else 0.0
    return float((stream.duration or 0) * (stream.time_base or 0)) if _format(container) in COUNTED else 0.0


def check_sound(
    uri: str, container: av.container.InputContainer, stream: av.AudioStream, seconds: float, promised: float
) -> None:
    """Check that a sound, and its file, are as long as promised.

    Raises:
        MediaError: it is shorter (`truncated`), or holds nothing (`unreadable`).
    """
    if seconds < HELD_SHARE * promised - SLACK_SECONDS or (seconds < promised - EXACT and container_is_truncated(uri)):
        raise MediaError("truncated", f"{seconds:.1f} s of the {promised:.1f} s of sound that the header promises")
    check_file_end(uri, container, stream, seconds)
    if not seconds:
        raise MediaError("unreadable", "the audio stream holds no samples")


def check_file_end(uri: str, container: av.container.InputContainer, stream: av.stream.Stream, seconds: float) -> None:
    """Check that a file is as long as it promises; if this stream ends earlier, at `seconds`, another may be longer.

    Raises:
        MediaError: no stream is long enough (`truncated`).
    """
    fragments = _format(container) == "mov" and stream.type == "video" and not stream.frames
    cut_test = container_is_truncated if fragments or _format(container) in SIZED else PACKED.get(_format(container))
    if cut_test and cut_test(uri):
        raise MediaError("truncated", "the file ends before its last part does")
    # Where a stream of these formats has a duration, FFmpeg guessed it and the file's from the bit rate.
    guessed = stream.duration is not None
    promised = 0.0 if guessed or _format(container) not in ONE_DURATION else (container.duration or 0) / 1e6
    if seconds < HELD_SHARE * promised - SLACK_SECONDS:
        _check_seconds(max(seconds, _last_end(uri)), promised)


def _check_seconds(end: float, promised: float) -> None:
    if end < HELD_SHARE * promised - SLACK_SECONDS:
        raise MediaError("truncated", f"{end:.1f} s of the {promised:.1f} s that the header promises")


def _format(container: av.container.InputContainer) -> str:
    return str(container.format.name).split(",", 1)[0]


def _last_end(uri: str) -> float:
    """End of the last packet of any stream in seconds, without decoding."""
    end = 0.0
    with open_container(uri) as container, blamed("FFmpeg"):
        for packet in container.demux():
            at = packet.pts if packet.pts is not None else packet.dts
            if at is not None and packet.size:
                end = max(end, float((at + (packet.duration or 0)) * packet.time_base))
    return end
