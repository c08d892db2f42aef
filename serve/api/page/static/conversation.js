// Questions and answers. Each way of asking has a history of its own, so an answer rests on its own senses alone.

import { chat, explain, hasKey } from "./api.js";
import { curlCommand, withoutData } from "./curl.js";
import { announce, byId, make, say, show } from "./dom.js";

const WAYS = {
  both: { label: "Sight and sound", senses: ["visual", "audio"] },
  visual: { label: "Sight only", senses: ["visual"], guessed: "what is heard can only be guessed" },
  audio: { label: "Sound only", senses: ["audio"], guessed: "what is seen can only be guessed" },
  words: { label: "Words only", senses: [] },
};
const COMPARED = ["both", "visual", "audio"];
const REASONS = { length: "cut at the longest answer", stop: null };

export const wayOf = (senses) => (senses.length === 2 ? "both" : senses[0] ?? "words");

export class Conversation {
  constructor(about) {
    this.about = about;
    this.medium = null;
    this.running = null;
    byId("max-tokens").max = about.max_tokens;
    byId("max-tokens").value = Math.min(about.default_tokens, about.max_tokens);
    byId("composer").addEventListener("submit", (event) => { event.preventDefault(); this.ask(); });
    byId("question").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        byId("composer").requestSubmit();
      }
    });
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") this.stop(); });
    byId("stop").addEventListener("click", () => this.stop());
    byId("restart").addEventListener("click", () => { this.restart(); byId("question").focus(); });
    byId("compare").addEventListener("change", () => this.showWay());
    this.restart();
  }

  // Ask about another clip from now on: a new conversation.
  setClip(clip) {
    this.clip = clip;
    byId("question").placeholder = clip.medium.question ?? "What happens here?";
    this.restart();
  }

  restart() {
    this.stop();
    this.histories = Object.fromEntries(Object.keys(WAYS).map((way) => [way, []]));
    byId("turns").replaceChildren();
    show(byId("empty"), true);
    show(byId("restart"), false);
    this.showWay();
  }

  stop() {
    this.running?.abort();
  }

  get #ways() {
    const senses = this.clip?.senses ?? [];
    return senses.length === 2 && byId("compare").checked ? COMPARED : [wayOf(this.clip?.chosen ?? [])];
  }

  showWay() {
    const canCompare = this.clip?.senses.length === 2;
    show(byId("compare-row"), canCompare);
    this.clip?.fix(canCompare && byId("compare").checked);
    const ways = this.#ways;
    const [way] = ways;
    const words = [this.clip && `By ${WAYS[way].label.toLowerCase()}`, this.#guessed(way)].filter(Boolean);
    say(byId("asked-by"), ways.length > 1 ? "" : words.join(": "));
  }

  // Said of an answer that rests on one of two senses: a model without a sense guesses rather than says so.
  #guessed(way) {
    return this.clip?.senses.length === 2 ? WAYS[way].guessed : null;
  }

  async ask() {
    const question = byId("question").value.trim();
    if (!question || this.running) return;
    if (!byId("composer").reportValidity()) return;
    const running = this.running = new AbortController();
    const ways = this.#ways;
    const turn = make("article", { className: "turn" }, make("h2", { className: "question", textContent: question }));
    const answers = make("div", { className: `answers n${ways.length}` });
    turn.append(answers);
    byId("turns").append(turn);
    show(byId("empty"), false);
    byId("question").value = "";
    this.#setRunning(true);
    announce("Asked. The answer is being written.");
    turn.scrollIntoView({ block: "nearest" });
    await Promise.all(ways.map((way) => this.#answer(way, question, answers, running.signal)));
    this.running = null;
    this.#setRunning(false);
  }

  #setRunning(isRunning) {
    const held = document.activeElement;
    show(byId("send"), !isRunning);
    show(byId("stop"), isRunning);
    show(byId("restart"), !isRunning);
    if (held === byId("send") || held === byId("stop")) byId(isRunning ? "stop" : "question").focus();
  }

  async #answer(way, question, answers, signal) {
    const text = make("p", { className: "text", ariaBusy: "true" });
    const facts = make("span", { className: "facts" });
    const copy = make("button", { type: "button", className: "quiet", textContent: "Copy as curl" });
    const guessed = this.#guessed(way);
    const box = make("section", { className: `answer ${way}`, ariaLabel: WAYS[way].label },
      make("div", {}, make("h3", { textContent: WAYS[way].label }), guessed && make("p", { className: "facts", textContent: guessed })),
      text, make("footer", {}, facts, copy));
    answers.append(box);
    const history = this.histories[way];
    const clip = WAYS[way].senses.length ? this.clip : null;
    const ending = await this.#write(way, history, question, clip, text, facts, copy, signal);
    text.ariaBusy = "false";
    box.classList.add(ending.error ? "failed" : "done");
    if (ending.error) text.append(make("span", { className: "error", textContent: ending.error }));
    if (ending.text) history.push({ question, answer: ending.text });
    announce(`${WAYS[way].label}: ${ending.error ?? (ending.text || "an empty answer")}`);
  }

  async #write(way, history, question, clip, text, facts, copy, signal) {
    const started = performance.now();
    let answer = "", tokens = null, reason = null;
    const settle = (end) => {
      const seconds = `${((performance.now() - started) / 1000).toFixed(1)} s`;
      facts.textContent = [tokens && `${tokens} tokens`, seconds, end].filter(Boolean).join(" · ");
    };
    try {
      const body = await this.#body(way, history, question, clip);
      copy.addEventListener("click", () => this.#copy(copy, body, clip));
      for await (const event of chat(body, signal)) {
        const choice = event.choices[0];
        if (choice?.delta.content) {
          answer += choice.delta.content;
          text.textContent = answer;
        }
        reason = choice?.finish_reason ?? reason;
        tokens = event.usage?.completion_tokens ?? tokens;
      }
      settle(REASONS[reason]);
      if (!answer) text.textContent = "(an empty answer)";
      return { text: answer };
    } catch (error) {
      settle(error.name === "AbortError" ? "stopped" : null);
      return error.name === "AbortError" ? { text: answer } : { text: "", error: explain(error) };
    }
  }

  async #body(way, history, question, clip) {
    const parts = clip ? [await clip.medium.part()] : [];
    const turns = [...history, { question }];
    const messages = turns.flatMap((turn, number) => [
      { role: "user", content: [...(number ? [] : parts), { type: "text", text: turn.question }] },
      ...(turn.answer === undefined ? [] : [{ role: "assistant", content: turn.answer }]),
    ]);
    const system = byId("system").value.trim();
    if (system) messages.unshift({ role: "system", content: system });
    const [seed, stop] = [byId("seed").value, byId("stop-text").value];
    return {
      model: this.about.model,
      messages,
      ...(clip ? { modalities_in: WAYS[way].senses } : {}),
      max_tokens: byId("max-tokens").valueAsNumber,
      temperature: byId("temperature").valueAsNumber,
      top_p: byId("top-p").valueAsNumber,
      ...(seed ? { seed: Number(seed) } : {}),
      ...(stop ? { stop: [stop] } : {}),
      stream: true,
      stream_options: { include_usage: true },
    };
  }

  async #copy(button, body, clip) {
    const file = clip?.medium.file ?? null;
    const text = curlCommand(location.origin, file ? shortened(body) : body, file, hasKey());
    try {
      await navigator.clipboard.writeText(text);
    } catch { // browsers allow it on the loopback and over https alone
      const command = make("textarea", { className: "command", value: text, readOnly: true, rows: 6, ariaLabel: "Command" });
      button.replaceWith(command);
      command.select();
      return;
    }
    button.textContent = file ? "Copied: run it in the file’s folder" : "Copied";
    announce(button.textContent);
    setTimeout(() => { button.textContent = "Copy as curl"; }, 2000);
  }
}

// The body without the file's data, which the command reads itself.
function shortened(body) {
  return JSON.parse(JSON.stringify(body, (name, value) => (name === "url" ? withoutData(value) : value)));
}
