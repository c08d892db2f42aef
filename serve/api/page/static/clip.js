// What is asked about: a player, the frames that the encoder takes with their times, and the sound with its segments.

import { clock, draw, make, megabytes, rove, show } from "./dom.js";

const HEIGHT = 64; // of the waveform, in its own units
const NAMES = { visual: "Sight", audio: "Sound" };

// medium: { name, kind, bytes, url (or null), offset (where a part begins in its file), preview, part() }
// known: the senses that the model was trained with.
// changed: called when a switch is turned; null makes no switches.
export class Clip {
  constructor(root, medium, known, changed = null) {
    this.medium = medium;
    this.known = known;
    this.senses = known.filter((sense) => medium.preview[sense === "visual" ? "sight" : "sound"]);
    this.switches = {};
    this.changed = changed;
    this.player = this.#makePlayer();
    this.still = make("div", { className: "still", hidden: true });
    root.replaceChildren(this.#makeTitle(), ...(this.player ? [this.player] : []), this.still,
      ...this.#makeSight(), ...this.#makeSound());
    if (!this.player) this.#showStill(0);
  }

  // The senses that are switched on.
  get chosen() {
    return this.senses.filter((sense) => this.switches[sense].checked);
  }

  // All senses on, and fixed there, while answers by each are compared.
  fix(isFixed) {
    for (const box of Object.values(this.switches)) {
      if (isFixed) box.checked = true;
      box.disabled = isFixed;
      box.closest("label").title = isFixed ? "Both are on while answers stand side by side" : "";
      dim(box);
    }
  }

  close() {
    if (this.medium.url?.startsWith("blob:")) URL.revokeObjectURL(this.medium.url);
  }

  get #offset() {
    return this.medium.offset ?? 0;
  }

  #makeTitle() {
    this.facts = make("span", { className: "facts" });
    this.#sayFacts(this.medium.preview.sound?.seconds);
    return make("div", { className: "clip-title" }, make("h2", { textContent: this.medium.name }), this.facts);
  }

  #sayFacts(seconds) {
    const { bytes } = this.medium;
    this.facts.textContent = [seconds && clock(seconds), bytes && megabytes(bytes)].filter(Boolean).join(" · ");
  }

  #makePlayer() {
    const { kind, url, name } = this.medium;
    if (!url) return null;
    const tags = { video: "video", audio: "audio", image: "img" };
    const player = make(tags[kind], { className: `player ${kind}` });
    if (kind === "image") player.alt = name;
    else Object.assign(player, { controls: true, preload: "metadata", playsInline: true, ariaLabel: `Player of ${name}` });
    player.addEventListener("error", () => this.#withoutPlayer());
    player.addEventListener("loadedmetadata", () => this.#shape(player.videoWidth, player.videoHeight));
    player.addEventListener("loadedmetadata", () => {
      if (!this.medium.preview.sound && Number.isFinite(player.duration)) this.#sayFacts(player.duration);
    });
    player.addEventListener("load", () => this.#shape(player.naturalWidth, player.naturalHeight));
    player.addEventListener("timeupdate", () => this.#follow(player.currentTime - this.#offset));
    player.src = url;
    if (this.#offset) player.addEventListener("loadedmetadata", () => { player.currentTime = this.#offset; }, { once: true });
    return player;
  }

  #shape(width, height) {
    if (width && height) this.frames?.style.setProperty("--shape", `${width} / ${height}`);
  }

  #withoutPlayer() {
    this.player.remove();
    this.player = null;
    this.#showStill(0);
    const { sight, sound } = this.medium.preview;
    const decoded = sight || sound ? "; the server decodes it" : "";
    const square = sight?.pictures.length ? " Its frames are square, as the model gets them." : "";
    this.still.after(make("p", { className: "note", textContent: `This browser cannot play the file${decoded}.${square}` }));
  }

  #makeSight() {
    const sight = this.medium.preview.sight;
    if (!sight) return this.#failure("visual");
    const { pictures, index, times } = sight;
    if (!pictures.length) {
      const at = times.map(clock).join(", ");
      const note = make("p", { className: "note", textContent: at ? `Frames at ${at}.` : "The times of its frames are not known." });
      return [this.#section("visual", `${times.length || "no"} frames`, note)];
    }
    this.frames = make("ol", { className: "frames" }, ...index.map((picture, place) =>
      make("li", {}, this.#frame(pictures[picture], place, times[place]))));
    rove(this.frames, "button");
    const distinct = new Set(index).size;
    const some = distinct < index.length ? `, ${distinct} distinct` : "";
    return [this.#section("visual", this.medium.kind === "image" ? "a still" : `${index.length} frames${some}`, this.frames)];
  }

  #frame(picture, place, time) {
    const isStill = this.medium.kind === "image";
    const said = isStill ? "The picture" : time === undefined ? `Frame ${place + 1}` : `Frame at ${clock(time)}`;
    const image = make("img", { src: `data:image/jpeg;base64,${picture}`, alt: "", draggable: false });
    const shown = make("span", { className: "time", textContent: time === undefined ? place + 1 : clock(time), hidden: isStill });
    const button = make("button", { type: "button", title: said, ariaLabel: said }, image, shown);
    button.addEventListener("click", () => this.#seek(place));
    return button;
  }

  #makeSound() {
    const sound = this.medium.preview.sound;
    if (!sound) return this.#failure("audio");
    const { peaks, seconds, segments } = sound;
    const bounds = make("ol", { className: "segments" }, ...Array.from({ length: seconds ? segments : 0 }, (_, k) => make("li", {
      textContent: `${clock((k * seconds) / segments)} to ${clock(((k + 1) * seconds) / segments)}`,
    })));
    const wave = peaks.length ? [make("div", { className: "waveform" }, this.#makeWave(sound))] : [];
    return [this.#section("audio", segments === 1 ? "one segment" : `${segments} segments`, ...wave, bounds)];
  }

  #makeWave({ peaks, seconds, segments }) {
    const width = peaks.length;
    this.head = draw("line", { class: "head", y1: 0, y2: HEIGHT, x1: -1, x2: -1 });
    const bands = Array.from({ length: segments }, (_, k) => draw("rect", {
      class: k % 2 ? "band odd" : "band", x: (k * width) / segments, width: width / segments, y: 0, height: HEIGHT,
    }));
    const ticks = (this.medium.preview.sight?.times ?? []).map((time) => {
      const x = Math.min(width - 1, Math.max(1, (time / seconds) * width));
      return draw("line", { class: "tick", x1: x, x2: x, y1: 0, y2: 5 });
    });
    const said = `Waveform of ${clock(seconds)} of sound, in ${segments} ${segments === 1 ? "segment" : "segments"}`;
    const wave = draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": said },
      ...bands, draw("path", { class: "wave", d: bars(peaks) }), ...ticks, this.head);
    wave.addEventListener("click", (event) => {
      const { left, width: wide } = wave.getBoundingClientRect();
      this.#jump(((event.clientX - left) / wide) * seconds);
    });
    return wave;
  }

  #section(sense, fact, ...content) {
    const isKnown = this.known.includes(sense);
    const title = this.changed && isKnown ? this.#makeSwitch(sense) : make("h3", { textContent: NAMES[sense] });
    const section = make("section", { className: `sense ${sense}`, ariaLabel: NAMES[sense] },
      make("div", { className: "sense-title" }, title, make("span", { className: "facts", textContent: fact })), ...content);
    if (!isKnown) {
      const said = `This model was trained without ${NAMES[sense].toLowerCase()}.`;
      section.append(make("p", { className: "note", textContent: said }));
    }
    return section;
  }

  #makeSwitch(sense) {
    const box = make("input", { type: "checkbox", checked: true, attributes: { role: "switch" } });
    this.switches[sense] = box;
    box.addEventListener("change", () => { dim(box); this.changed(); });
    return make("label", { className: "switch" }, box, make("span", { textContent: NAMES[sense] }));
  }

  #failure(sense) {
    const failure = this.medium.preview.failures[sense];
    if (!failure || failure.code === "absent") return [];
    return [make("p", { className: "error", textContent: `${NAMES[sense]} cannot be used: ${failure.reason}.` })];
  }

  #seek(place) {
    const time = this.medium.preview.sight.times[place];
    if (this.player && time !== undefined) this.#jump(time);
    else this.#showStill(place);
    this.#mark(place);
  }

  #jump(seconds) {
    if (this.player && this.medium.kind !== "image") this.player.currentTime = this.#offset + seconds;
    this.#follow(seconds);
  }

  #showStill(place) {
    const sight = this.medium.preview.sight;
    if (!sight?.pictures.length) return;
    this.still.replaceChildren(make("img", { src: `data:image/jpeg;base64,${sight.pictures[sight.index[place]]}`, alt: `Frame ${place + 1}` }));
    show(this.still, true);
    this.#mark(place);
  }

  #follow(seconds) {
    const { sight, sound } = this.medium.preview;
    if (this.head) {
      const x = (Math.max(0, seconds) / sound.seconds) * sound.peaks.length;
      this.head.setAttribute("x1", x);
      this.head.setAttribute("x2", x);
    }
    if (sight?.times.length) this.#mark(Math.max(0, sight.times.findLastIndex((time) => time <= seconds + 0.001)));
  }

  #mark(place) {
    this.frames?.querySelectorAll("button").forEach((button, at) => {
      if (at === place) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    });
  }
}

function dim(box) {
  box.closest(".sense").classList.toggle("off", !box.checked);
}

// A bar for each peak, mirrored about the middle.
function bars(peaks) {
  const middle = HEIGHT / 2;
  return peaks.map((peak, step) => {
    const reach = Math.max(0.5, (peak / 100) * (middle - 8));
    return `M${step + 0.5} ${(middle - reach).toFixed(1)}V${(middle + reach).toFixed(1)}`;
  }).join("");
}
