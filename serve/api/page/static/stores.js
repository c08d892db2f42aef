// The stores of the server: what their columns hold, what failed and why, and their items.

import { explain, getJson } from "./api.js";
import { Clip } from "./clip.js";
import { announce, make, megabytes, show } from "./dom.js";
import { itemDetails } from "./item.js";

const path = (...words) => `#/stores/${words.map(encodeURIComponent).join("/")}`;
const count = (number) => number.toLocaleString("en");
const PAUSE = 250; // ms without a key before a search begins

export class Stores {
  // askAbout: is given an item as a medium.
  constructor(root, about, askAbout) {
    Object.assign(this, { root, about, askAbout });
    this.opening = 0;
  }

  // Show the list of stores, a store or an item.
  async open(store = null, key = null) {
    const own = ++this.opening;
    if (store === null && this.about.stores.length === 1) [store] = this.about.stores;
    this.root.replaceChildren(make("p", { className: "note", textContent: "Reading the store" }));
    try {
      const shown = store === null ? this.#list() : key === null ? await this.#store(store) : await this.#item(store, key);
      if (own === this.opening) this.root.replaceChildren(...shown);
    } catch (error) {
      if (own === this.opening) this.root.replaceChildren(...this.#trail(store), make("p", { className: "error", textContent: explain(error) }));
    }
  }

  #list() {
    return [make("h1", { textContent: "Stores" }), make("ul", { className: "names" },
      ...this.about.stores.map((store) => make("li", {}, make("a", { href: path(store), textContent: store }))))];
  }

  #trail(...words) {
    const links = words.filter(Boolean).map((word, at) => make("a", { href: path(...words.slice(0, at + 1)), textContent: word }));
    if (this.about.stores.length > 1) links.unshift(make("a", { href: "#/stores", textContent: "Stores" }));
    return links.length ? [make("nav", { className: "trail", ariaLabel: "Where this is" }, ...links)] : [];
  }

  async #store(store) {
    const found = await getJson(`/page/stores/${encodeURIComponent(store)}`);
    const items = new Items(store);
    const columns = found.columns.map((column) => columnCard(column, found.items, () => items.showFailed(column.name)));
    const talks = found.conversations.length ? `Conversations: ${found.conversations.join(", ")}` : "No conversations";
    items.look();
    return [
      ...(this.about.stores.length > 1 ? this.#trail() : []),
      make("h1", { textContent: store }),
      make("p", { className: "lead", textContent: `${count(found.items)} items. ${talks}.` }),
      make("div", { className: "store" },
        make("section", {}, make("h2", { textContent: "Columns" }), make("ul", { className: "columns" }, ...columns)),
        make("section", {}, make("h2", { textContent: "Items" }), ...items.elements)),
    ];
  }

  async #item(store, key) {
    const where = `/page/stores/${encodeURIComponent(store)}/items/${encodeURIComponent(key)}`;
    const item = await getJson(where);
    const clip = make("div", { className: "clip" }, make("p", { className: "note", textContent: "Decoding its frames and sound" }));
    const ask = make("button", { type: "button", className: "primary", textContent: "Ask about this item", disabled: true });
    const medium = getJson(`${where}/preview`).then((preview) => ({
      name: item.name, kind: item.kind, bytes: item.bytes, url: item.url, offset: item.start ?? 0, preview,
      part: async () => ({ type: "store_item", store_item: { store, key } }),
      question: item.conversations[0]?.turns[0]?.instruction,
    }));
    medium.then((made) => {
      const { senses } = new Clip(clip, made, this.about.senses);
      ask.disabled = !senses.length;
      if (!item.url) clip.append(make("p", { className: "note", textContent: "Its file is not on this machine any more." }));
      ask.addEventListener("click", () => this.askAbout(made));
    }).catch((error) => clip.replaceChildren(make("p", { className: "error", textContent: explain(error) })));
    return [
      ...this.#trail(store, null),
      make("h1", { textContent: key }),
      make("div", { className: "item" }, make("div", { className: "medium" }, clip, make("p", {}, ask)), itemDetails(item)),
    ];
  }
}

// A column: its name, a bar of its coverage, and the same in words.
function columnCard(column, items, showFailed) {
  const kind = column.is_text ? "texts" : column.modality === "visual" ? "sight" : "sound";
  const title = make("div", { className: "column-title" }, make("h3", { textContent: column.name }),
    make("span", { className: "facts", textContent: [kind, column.is_read && "read by this model", column.bytes && megabytes(column.bytes)].filter(Boolean).join(" · ") }));
  if (column.damaged) {
    const said = "A file of this column is damaged. The server’s log names it; store verify says more.";
    return make("li", {}, title, make("p", { className: "error", textContent: said }));
  }
  const parts = [["usable", column.usable], ["absent", column.absent], ["failed", column.failed], ["missing", column.missing]];
  const bar = make("div", { className: `coverage ${column.modality}`, ariaHidden: "true" });
  for (const [name, number] of parts.filter(([, each]) => each > 0)) {
    const part = make("span", { className: name });
    part.style.flexGrow = number / items;
    bar.append(part);
  }
  const lacking = column.modality === "visual" ? "without pictures" : "without sound";
  const words = make("p", { className: "counts" }, make("span", { textContent: `${count(column.usable)} usable` }));
  if (column.absent) words.append(make("span", { textContent: `${count(column.absent)} ${lacking}` }));
  if (column.failed) {
    const button = make("button", { type: "button", className: "quiet fault", textContent: `${count(column.failed)} failed` });
    button.addEventListener("click", showFailed);
    words.append(button);
  }
  if (column.missing) words.append(make("span", { textContent: `${count(column.missing)} not encoded yet` }));
  return make("li", {}, title, bar, words);
}

// A list of items that a search narrows, or of a column's failures; more are fetched when they are asked for.
class Items {
  constructor(store) {
    this.store = store;
    this.failed = null;
    this.looking = 0;
    this.field = make("input", { type: "search", id: "search", autocomplete: "off", spellcheck: false, maxLength: 200 });
    this.filter = make("p", { className: "filter", hidden: true });
    this.list = make("ul", { className: "items" });
    this.state = make("p", { className: "note", attributes: { role: "status" } });
    this.more = make("button", { type: "button", className: "quiet", textContent: "Show more", hidden: true });
    this.elements = [
      make("form", { className: "search", attributes: { role: "search" } },
        make("label", { htmlFor: "search", textContent: "Part of a key" }), this.field),
      this.filter, this.list, this.state, make("p", {}, this.more),
    ];
    this.elements[0].addEventListener("submit", (event) => { event.preventDefault(); this.look(); });
    this.field.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.look(), PAUSE);
    });
    this.more.addEventListener("click", () => this.look(this.next));
  }

  showFailed(column) {
    this.failed = column;
    const all = make("button", { type: "button", className: "quiet", textContent: "Show all items" });
    all.addEventListener("click", () => {
      this.failed = null;
      show(this.filter, false);
      this.field.focus();
      this.look();
    });
    this.filter.replaceChildren(`What failed in ${column}. `, all);
    show(this.filter, true);
    this.look();
    this.filter.scrollIntoView({ block: "nearest" });
    all.focus();
  }

  async look(start = 0) {
    clearTimeout(this.timer);
    const own = ++this.looking;
    const words = new URLSearchParams({ search: this.field.value.trim(), start, ...(this.failed ? { failed: this.failed } : {}) });
    try {
      const page = await getJson(`/page/stores/${encodeURIComponent(this.store)}/items?${words}`);
      if (own !== this.looking) return;
      this.next = page.next;
      const rows = page.items.map((item) => this.#row(item));
      if (start) {
        this.list.append(...rows);
        rows[0]?.querySelector("a").focus();
      } else this.list.replaceChildren(...rows);
      show(this.more, page.next !== null);
      this.state.textContent = this.list.children.length ? "" : "No item has this in its key.";
      announce(`${this.list.children.length}${page.next === null ? "" : " and more"} items`);
    } catch (error) {
      if (own === this.looking) this.state.textContent = explain(error);
    }
  }

  #row(item) {
    const reason = item.reason ? make("span", { className: "reason" },
      make("span", { className: "error", textContent: item.code }), ` ${item.reason}`) : null;
    return make("li", {}, make("a", { href: path(this.store, item.key), textContent: item.key }),
      make("span", { className: "facts", textContent: item.kind }), reason);
  }
}
