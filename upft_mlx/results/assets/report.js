"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const PAGE = 25;
const DIFF_CELLS = 4e6;

// A row: [benchmark, id, sample, question, gold, level, subject, base, tuned]; a side: [right, answer, tokens, cut, text].
const rows = data.rows.map((r, order) => ({
  order, benchmark: data.benchmarks[r[0]], id: r[1], sample: r[2], question: r[3], gold: r[4], level: r[5],
  subject: r[6], base: side(r[7]), tuned: side(r[8]), key: [data.benchmarks[r[0]], r[1], r[2]].join("/"),
}));
function side(s) { return s && { right: !!s[0], answer: s[1], tokens: s[2], cut: !!s[3], text: s[4] }; }
const last = (r) => r.tuned || r.base;
const gained = (r) => r.base && r.tuned && !r.base.right && r.tuned.right;
const lost = (r) => r.base && r.tuned && r.base.right && !r.tuned.right;
const both = rows.some((r) => r.base && r.tuned);

const FILTERS = {
  all: ["all problems", () => true],
  ...(both && {
    flips: ["flips", (r) => gained(r) || lost(r)],
    gained: ["wrong to right", gained],
    lost: ["right to wrong", lost],
    stuck: ["wrong on both", (r) => r.base && r.tuned && !r.base.right && !r.tuned.right],
  }),
  wrong: [both ? "tuned is wrong" : "wrong", (r) => !last(r).right],
  right: [both ? "tuned is right" : "right", (r) => last(r).right],
};
const tokens = (r) => last(r).tokens;
const grown = (r) => r.base && r.tuned ? r.tuned.tokens - r.base.tokens : 0;
const SORTS = {
  ...(both && { flips: ["flips first", (a, b) => (gained(b) ? 2 : lost(b) ? 1 : 0) - (gained(a) ? 2 : lost(a) ? 1 : 0)] }),
  order: ["as asked", () => 0],
  longest: ["longest first", (a, b) => tokens(b) - tokens(a)],
  shortest: ["shortest first", (a, b) => tokens(a) - tokens(b)],
  ...(both && { longer: ["most grown first", (a, b) => grown(b) - grown(a)], shorter: ["most shrunk first", (a, b) => grown(a) - grown(b)] }),
};
const LENGTHS = {
  "": ["any", () => true],
  cut: ["cut at the limit", (r) => last(r).cut],
  ...(both && {
    longer: ["tuned over 25 % longer", (r) => r.base && r.tuned && r.tuned.tokens > 1.25 * r.base.tokens],
    shorter: ["tuned over 25 % shorter", (r) => r.base && r.tuned && r.tuned.tokens < 0.75 * r.base.tokens],
  }),
  ...quarters(),
};
function quarters() {
  const sorted = rows.map(tokens).sort((a, b) => a - b), found = {};
  const edges = [0, 0.25, 0.5, 0.75, 1].map((q) => sorted[Math.floor(q * (sorted.length - 1))]);
  for (let i = 0; i < 4; i++) {
    const low = i ? edges[i] + 1 : edges[0], high = edges[i + 1];
    if (low <= high) found[low + "-" + high] = [low + " to " + high + " tokens", (r) => tokens(r) >= low && tokens(r) <= high];
  }
  return found;
}
const named = (field, all) => {
  const values = [...new Set(rows.map((r) => r[field]).filter((v) => v !== null))];
  if (field !== "benchmark") values.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  return { "": [all, () => true], ...Object.fromEntries(values.map((v) => ["=" + v, [v, (r) => r[field] === v]])) };
};
const CHOICES = {
  filter: FILTERS, benchmark: named("benchmark", "all"), level: named("level", "all"), subject: named("subject", "all"),
  length: LENGTHS, sort: SORTS,
};
const START = { filter: "all", benchmark: "", level: "", subject: "", length: "", sort: both ? "flips" : "order", q: "", page: "1", open: "", theme: "" };
let state = { ...START }, shown = [];

// What is shown stands in the address: #filter=flips&sort=longest.
function read() {
  const given = location.hash.includes("=") ? new URLSearchParams(location.hash.slice(1)) : new URLSearchParams();
  const told = Object.fromEntries(Object.keys(START).map((name) => [name, given.get(name) ?? START[name]]));
  for (const [name, choices] of Object.entries(CHOICES)) {
    if (["benchmark", "level", "subject"].includes(name) && told[name] && told[name][0] !== "=") told[name] = "=" + told[name];
    if (!Object.hasOwn(choices, told[name])) told[name] = START[name];
  }
  state = told;
}
function write() {
  const changed = Object.entries(state).filter(([name, value]) => value !== START[name]);
  const text = new URLSearchParams(changed.map(([name, value]) => [name, value.replace(/^=/, "")])).toString();
  history.replaceState(null, "", text ? "#" + text : location.pathname + location.search);
}
function set(changes) {
  state = { ...state, page: "1", open: "", ...changes };
  write();
  draw();
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}
function chosen() {
  const tests = ["filter", "benchmark", "level", "subject", "length"].map((name) => CHOICES[name][state[name]][1]);
  const wanted = state.q.trim().toLowerCase();
  const found = rows.filter((r) => tests.every((test) => test(r)) && (!wanted || haystack(r).includes(wanted)));
  const compare = SORTS[state.sort][1];
  return found.sort((a, b) => compare(a, b) || a.order - b.order);
}
function haystack(r) {
  const sides = [r.base, r.tuned].filter(Boolean).flatMap((s) => [s.answer || "", s.text]);
  return r.haystack ??= [r.id, r.question || "", r.gold, ...sides].join("\n").toLowerCase();
}
function draw() {
  document.documentElement.dataset.theme = state.theme;
  if (!at("rows")) return;
  shown = chosen();
  const pages = Math.max(1, Math.ceil(shown.length / PAGE));
  const opened = state.open ? shown.findIndex((r) => r.key === state.open) : -1;
  const page = opened >= 0 ? Math.floor(opened / PAGE) + 1 : Math.min(pages, Math.max(1, parseInt(state.page, 10) || 1));
  state.page = String(page);
  for (const name of Object.keys(CHOICES)) at(name).value = state[name];
  if (document.activeElement !== at("q")) at("q").value = state.q;
  at("count").textContent = (shown.length === rows.length ? "" : number(shown.length) + " of ") + number(rows.length) + (rows.length === 1 ? " answer" : " answers");
  at("where").textContent = "page " + page + " of " + pages;
  at("previous").disabled = page <= 1;
  at("next").disabled = page >= pages;
  at("pager").hidden = pages < 2;
  at("rows").tBodies[0].replaceChildren(...shown.slice((page - 1) * PAGE, page * PAGE).map(line));
  const wanted = opened >= 0 && at("rows").querySelector("[data-open]");
  if (wanted) wanted.click();
}
const number = (n) => n.toLocaleString("en");
function line(r) {
  const where = data.benchmarks.length > 1 ? element("small", {}, " " + r.benchmark) : null;
  const button = element("button", { type: "button", "aria-expanded": "false" }, r.id + (r.sample ? " #" + r.sample : ""), where);
  if (r.key === state.open) button.dataset.open = "";
  button.addEventListener("click", () => toggle(r, button));
  const length = [r.base, r.tuned].filter(Boolean).map((s) => number(s.tokens)).join(" → ");
  return element("tr", { class: gained(r) ? "gained" : lost(r) ? "lost" : "" },
    element("td", {}, button), element("td", { "data-name": "gold" }, r.gold),
    verdict(r.base, "base"), verdict(r.tuned, "tuned"),
    element("td", { class: "number", "data-name": "tokens" }, length), element("td", { class: "question" }, r.question || ""));
}
function verdict(s, name) {
  if (!s) return element("td", { "data-name": name }, "·");
  return element("td", { class: s.right ? "right" : "wrong", "data-name": name, "aria-label": name + (s.right ? " right" : " wrong") },
    (s.right ? "✓ " : "✗ ") + (s.answer ?? "none found"));
}
function toggle(r, button) {
  const row = button.closest("tr"), open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  if (open) row.nextElementSibling.remove();
  else row.after(detail(r));
  state.open = open ? "" : r.key;
  write();
}
function detail(r) {
  const cell = element("td", { colspan: "6" }, r.question || "(the question is no longer available)");
  const about = [r.level && "level " + r.level, r.subject].filter(Boolean).join(", ");
  cell.append(element("p", {}, element("b", {}, "gold " + r.gold), about ? " (" + about + ")" : ""));
  const marked = r.base && r.tuned ? compared(r.base.text, r.tuned.text) : { base: [r.base?.text ?? ""], tuned: [r.tuned?.text ?? ""] };
  const pair = element("div", { class: "pair" });
  for (const name of ["base", "tuned"]) {
    const s = r[name];
    if (s) pair.append(element("div", {}, element("h4", { class: name }, name + (s.right ? " ✓ " : " ✗ ") + (s.answer ?? "none found") + ", " + number(s.tokens) + (s.tokens === 1 ? " token" : " tokens") + (s.cut ? ", cut" : "")), ...marked[name]));
  }
  cell.append(pair);
  return element("tr", { class: "detail" }, cell);
}

// Differences word by word: what both begin and end with is left out, the longest common subsequence of the rest is kept.
function compared(base, tuned) {
  const a = base.match(/\s+|\p{L}+|\p{N}+|./gsu) || [], b = tuned.match(/\s+|\p{L}+|\p{N}+|./gsu) || [];
  let start = 0, end = 0;
  while (start < Math.min(a.length, b.length) && a[start] === b[start]) start++;
  while (end < Math.min(a.length, b.length) - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const n = a.length - end - start, m = b.length - end - start, width = m + 1;
  const keepA = new Uint8Array(a.length).fill(1), keepB = new Uint8Array(b.length).fill(1);
  keepA.fill(0, start, start + n);
  keepB.fill(0, start, start + m);
  if (n * m <= DIFF_CELLS) {
    const best = new Uint32Array((n + 1) * width);
    for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--)
      best[i * width + j] = a[start + i] === b[start + j] ? best[(i + 1) * width + j + 1] + 1 : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    for (let i = 0, j = 0; i < n && j < m;) {
      if (a[start + i] === b[start + j]) keepA[start + i++] = keepB[start + j++] = 1;
      else if (best[(i + 1) * width + j] >= best[i * width + j + 1]) i++;
      else j++;
    }
  }
  return { base: marks(a, keepA, "gone"), tuned: marks(b, keepB, "new") };
}
function marks(words, keep, css) {
  const found = [];
  for (let i = 0; i < words.length;) {
    let j = i;
    while (j < words.length && keep[j] === keep[i]) j++;
    const text = words.slice(i, j).join("");
    found.push(keep[i] ? text : element("mark", { class: css }, text));
    i = j;
  }
  return found;
}

function flipTheme() {
  const dark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  state.theme = dark ? "light" : "dark";
  document.documentElement.dataset.theme = state.theme;
  write();
}
function step(by) {
  const buttons = [...at("rows").querySelectorAll("td:first-child > button")];
  const here = buttons.indexOf(document.activeElement);
  buttons[Math.min(buttons.length - 1, Math.max(0, here + by))]?.focus();
}
const turn = (by) => { if (!at(by > 0 ? "next" : "previous").disabled) set({ page: String(+state.page + by) }); };
function listen() {
  at("theme").addEventListener("click", flipTheme);
  addEventListener("hashchange", () => { if (location.hash.includes("=") || !location.hash) { read(); draw(); } });
  const keys = { d: flipTheme };
  if (at("rows")) {
    for (const [name, choices] of Object.entries(CHOICES)) {
      at(name).append(...Object.entries(choices).map(([value, [text]]) => element("option", { value }, text)));
      at(name).parentElement.hidden = ["benchmark", "level", "subject"].includes(name) && Object.keys(choices).length < 3;
      at(name).addEventListener("change", () => set({ [name]: at(name).value }));
    }
    let waiting;
    at("q").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => set({ q: at("q").value }), 120); });
    at("controls").addEventListener("submit", (event) => { event.preventDefault(); set({ q: at("q").value }); });
    at("previous").addEventListener("click", () => turn(-1));
    at("next").addEventListener("click", () => turn(1));
    Object.assign(keys, { "/": () => at("q").focus(), j: () => step(1), k: () => step(-1), n: () => turn(1), p: () => turn(-1) });
  }
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.activeElement === at("q")) at("q").blur();
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  });
}
listen();
read();
draw();
