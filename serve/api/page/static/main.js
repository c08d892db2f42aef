// The page: what the server has, a file to ask about, and which part of the page is shown.

import { explain, getJson, sendFile } from "./api.js";
import { Clip } from "./clip.js";
import { Conversation } from "./conversation.js";
import { announce, byId, megabytes, say, show } from "./dom.js";
import { Stores } from "./stores.js";

const about = await begin();
const types = about ? typesByEnding(about.types) : {};
const conversation = about && new Conversation(about);
const stores = about && new Stores(byId("stores"), about, askAbout);
let clip = null;
let loading = null;

if (about) prepare();

async function begin() {
  try {
    return await getJson("/page/about");
  } catch (error) {
    show(byId("ask"), true);
    fail(explain(error));
    return null;
  }
}

// Which part of the page is shown is in its address, so that Back works, and items can be linked to.
function route() {
  const [where, ...words] = location.hash.split("/").slice(1).map(decodeURIComponent);
  const isStores = where === "stores" && about.stores.length > 0;
  for (const [name, isHere] of [["ask", !isStores], ["stores", isStores]]) {
    show(byId(name), isHere);
    if (isHere) byId(`nav-${name}`).setAttribute("aria-current", "page");
    else byId(`nav-${name}`).removeAttribute("aria-current");
  }
  document.title = isStores ? [...words.toReversed(), "stores", "avllm"].join(" · ") : "avllm";
  if (isStores) stores.open(...words);
}

function toContent() {
  byId("main").focus();
}

function prepare() {
  window.addEventListener("hashchange", () => { route(); toContent(); });
  byId("skip").addEventListener("click", (event) => { event.preventDefault(); toContent(); });
  for (const element of [byId("nav-stores"), byId("or-store")]) show(element, about.stores.length > 0);
  route();
  if (about.model !== "avllm") say(byId("model"), about.model);
  byId("file").accept = Object.keys(types).map((ending) => `.${ending}`).join(",");
  byId("pick").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", ({ target }) => { if (target.files[0]) openFile(target.files[0]); target.value = ""; });
  const drop = byId("ask");
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      byId("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    });
  }
  drop.addEventListener("drop", (event) => { if (event.dataTransfer.files[0]) openFile(event.dataTransfer.files[0]); });
}

// The part and the media type for each ending of a file's name. A GIF is a clip, as it may move.
function typesByEnding(parts) {
  const endings = {};
  for (const [part, known] of Object.entries(parts)) {
    for (const [type, ending] of Object.entries(known)) {
      if (!type.endsWith("/gif")) endings[ending] ??= { part, type };
    }
  }
  const { video_url: video = {} } = parts;
  if ("image/gif" in video) endings.gif = { part: "video_url", type: "image/gif" };
  return { ...endings, jpeg: endings.jpg, tiff: endings.tif };
}

const KINDS = { video_url: "video", image_url: "image", audio_url: "audio" };

async function openFile(file) {
  const known = types[file.name.split(".").pop().toLowerCase()];
  if (!known) return fail(`${file.name}: files of this kind cannot be asked about.`);
  if (file.size > about.media_bytes) {
    return fail(`${file.name} has ${megabytes(file.size)}; this server takes ${megabytes(about.media_bytes)}.`);
  }
  const preview = await load(`Sending ${file.name}`, (progress, signal) =>
    sendFile(`/page/preview?part=${known.part}`, file, known.type, progress, signal));
  if (!preview) return;
  if (!preview.sight && !preview.sound) return fail(`${file.name} cannot be used: ${[...new Set(Object.values(preview.failures).map(({ reason }) => reason))].join("; ")}.`);
  let data = null;
  open({
    name: file.name, kind: KINDS[known.part], bytes: file.size, file: file.name, preview,
    url: URL.createObjectURL(file),
    part: async () => ({ type: known.part, [known.part]: { url: `data:${known.type};base64,${await (data ??= base64(file))}` } }),
  });
}

// Ask about an item of a store.
function askAbout(medium) {
  history.pushState(null, "", "#/");
  route();
  scrollTo(0, 0);
  open(medium);
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read any more; choose it again.`));
    reader.readAsDataURL(file);
  });
}

// Wait for a preview; null if it failed or another one was begun.
async function load(text, get) {
  loading?.abort();
  const own = loading = new AbortController();
  say(byId("medium-error"), "");
  show(byId("progress"), true);
  say(byId("progress-text"), text);
  announce(text);
  const bar = byId("progress-bar");
  bar.removeAttribute("value");
  const progress = (share) => {
    if (share < 1) bar.value = share;
    else {
      bar.removeAttribute("value");
      say(byId("progress-text"), "Decoding on the server");
    }
  };
  try {
    return await get(progress, own.signal);
  } catch (error) {
    if (error.name !== "AbortError") fail(explain(error));
    return null;
  } finally {
    if (loading === own) {
      loading = null;
      show(byId("progress"), false);
    }
  }
}

function open(medium) {
  clip?.close();
  clip = new Clip(byId("clip"), medium, about.senses, () => conversation.showWay());
  show(byId("clip"), true);
  byId("drop").classList.add("small");
  conversation.setClip(clip);
  announce(`${medium.name} is ready.`);
  byId("question").focus();
}

function fail(text) {
  say(byId("medium-error"), text);
}
