// What a store says about an item: texts of its columns, conversations, and what each column has of it.

import { make, megabytes } from "./dom.js";

const STATES = {
  usable: "usable", absent: "has none", failed: "failed", missing: "not encoded yet", damaged: "damaged; the server’s log says more",
};
const SENSES = { visual: "by sight", audio: "by sound", audio_visual: "by sight and sound", text: "" };

export function itemDetails(item) {
  const texts = item.columns.flatMap((column) => Object.entries(column.texts ?? {}).map(([name, lines]) => [column, name, lines]));
  return make("div", { className: "details" },
    ...(texts.length ? [make("h2", { textContent: "Captions" }), ...texts.map((each) => captions(...each))] : []),
    ...(item.conversations.length ? [make("h2", { textContent: "Conversations" }), ...item.conversations.map(talk)] : []),
    make("h2", { textContent: "Columns" }),
    make("dl", { className: "facts-list" }, ...item.columns.flatMap(columnFacts), ...fileFacts(item)),
  );
}

function captions(column, name, lines) {
  return make("section", {}, make("h3", { className: "facts", textContent: `${column.name}, ${name}` }),
    make("ol", { className: "captions" }, ...[lines].flat(Infinity).map((line) => make("li", { textContent: line }))));
}

function talk({ name, id, turns }) {
  return make("section", { className: "talked" }, make("h3", { className: "facts", textContent: `${name}, ${id}` }),
    ...turns.flatMap((turn) => [
      make("p", { className: "asked" }, turn.instruction, ...sense(turn.modality)),
      make("p", { className: "replied", textContent: turn.response }),
    ]));
}

const sense = (modality) => (SENSES[modality] ? [make("span", { className: `by ${modality}`, textContent: SENSES[modality] })] : []);

function columnFacts(column) {
  const said = [STATES[column.state], column.reason && `${column.code}: ${column.reason}`].filter(Boolean).join(" · ");
  return [make("dt", { textContent: column.name }), make("dd", { className: column.state, textContent: said })];
}

function fileFacts({ name, kind, bytes, start, end }) {
  const part = start === null && end === null ? "" : ` from ${start ?? 0} s to ${end === null ? "its end" : `${end} s`}`;
  return [make("dt", { textContent: "File" }),
    make("dd", { textContent: `${name}${part} · ${kind}${bytes === null ? "" : ` · ${megabytes(bytes)}`}` })];
}
