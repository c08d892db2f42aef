// Requests to the server this page came from, and its errors in plain words.

import { byId, say } from "./dom.js";

const STORED = "avllm-key";
let key = sessionStorage.getItem(STORED) ?? "";
let asking = null;

export class ServerError extends Error {
  constructor(status, message, code = null, after = null) {
    super(message);
    Object.assign(this, { status, code, after });
  }
}

export const hasKey = () => Boolean(key);

// A response whose status is good. A missing key is asked for, and the request is made again.
export async function request(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { ...options.headers, ...authorization() } });
  if (response.status === 401) {
    await askKey();
    return request(path, options);
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

export const getJson = async (path, options) => (await request(path, options)).json();

// Send a file; `progress` hears the share that has been sent.
export async function sendFile(path, file, type, progress, signal) {
  try {
    return await sendOnce(path, file, type, progress, signal);
  } catch (error) {
    if (error.status !== 401) throw error;
    await askKey();
    return sendFile(path, file, type, progress, signal);
  }
}

function sendOnce(path, file, type, progress, signal) {
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest(); // fetch does not tell how much has been sent
    const end = () => sending.abort();
    signal.addEventListener("abort", end, { once: true });
    sending.open("POST", path);
    sending.setRequestHeader("Content-Type", type);
    for (const [name, value] of Object.entries(authorization())) sending.setRequestHeader(name, value);
    sending.upload.onprogress = (event) => progress(event.loaded / event.total);
    sending.onload = () => {
      if (sending.status === 200) resolve(JSON.parse(sending.responseText));
      else reject(errorFrom(sending.status, sending.responseText, sending.getResponseHeader("Retry-After")));
    };
    sending.onerror = () => reject(new TypeError("no connection"));
    sending.onabort = () => reject(new DOMException("stopped", "AbortError"));
    sending.onloadend = () => signal.removeEventListener("abort", end);
    sending.send(file);
  });
}

// Yields the events of a streamed answer.
export async function* chat(body, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ServerError(0, "The connection ended before the answer did.");
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events.filter((each) => each.startsWith("data: "))) {
      if (event === "data: [DONE]") return;
      const data = JSON.parse(event.slice(6));
      if (data.error) throw new ServerError(0, sentence(data.error.message), data.error.code);
      yield data;
    }
  }
}

const authorization = () => (key ? { Authorization: `Bearer ${key}` } : {});

async function errorOf(response) {
  return errorFrom(response.status, await response.text(), response.headers.get("Retry-After"));
}

function errorFrom(status, text, after) {
  try {
    const { message, code } = JSON.parse(text).error;
    return new ServerError(status, sentence(message), code, after);
  } catch {
    return new ServerError(status, `The server answered ${status}.`, null, after);
  }
}

const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`).replace(/^./, (first) => first.toUpperCase());

// What a person can do about an error.
export function explain(error) {
  if (error instanceof TypeError) return "The server cannot be reached. Is it still running?";
  if (error.code === "queue_full" || error.code === "busy") return `The server is busy. Try again in ${error.after ?? 1} s.`;
  if (error.status === 413) return "The file is larger than this server takes.";
  if (error.status === 503) return "The server is not ready. Try again in a moment.";
  return error.message;
}

// One dialog for all requests that lack a key.
function askKey() {
  asking ??= new Promise((resolve) => {
    const [dialog, form, field, fault] = ["key-dialog", "key-form", "key", "key-error"].map(byId);
    say(fault, key ? "The server does not know this key." : "");
    dialog.oncancel = (event) => event.preventDefault();
    form.onsubmit = (event) => {
      event.preventDefault();
      key = field.value.trim();
      sessionStorage.setItem(STORED, key);
      field.value = "";
      dialog.close();
      asking = null;
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}
