// What all views share: elements, controls, keys, and the model of a page without a kernel.

// An element. Attributes are set as text, on* as listeners; children are elements or text, never markup.
export function h(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "g", "text", "line"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// A control with its words beside it, which are its name.
export function labelled(words, control, ...after) {
  return h("label", { class: "rl-field" }, h("span", {}, words), control, ...after);
}

export function button(words, onclick, name = words) {
  return h("button", { type: "button", "aria-label": name, title: name, onclick }, words);
}

// A button that plays and pauses. `look(playing)` makes it say what it would do next.
export function playButton(onclick) {
  const toggle = button("▶ Play", onclick, "Play");
  const look = (playing) => ((toggle.textContent = playing ? "‖ Pause" : "▶ Play"), toggle.setAttribute("aria-label", playing ? "Pause" : "Play"));
  return { toggle, look };
}

// choices: [value, words] each.
export function select(choices, value, onchange) {
  const control = h("select", {}, ...choices.map(([v, words]) => h("option", { value: v, selected: String(v) === String(value) }, words)));
  control.addEventListener("change", () => onchange?.(control.value));
  return control;
}

export const box = (title, ...fields) => h("fieldset", {}, h("legend", {}, title), ...fields);
export const bar = (...fields) => h("div", { class: "rl-bar" }, ...fields);
export const muted = (...words) => h("p", { class: "rl-muted" }, ...words);
export const scrolling = (name, ...children) => h("div", { class: "rl-scroll", tabindex: "0", role: "group", "aria-label": name }, ...children);
// A table that scrolls: its heads in words, and its body.
export const table = (name, heads, body, look = null) =>
  scrolling(name, h("table", { class: look }, h("thead", {}, h("tr", {}, ...heads.map((words) => h("th", { scope: "col" }, words)))), body));
export const questionBox = (text = "") =>
  h("div", { class: "rl-question", dir: "auto", tabindex: "0", role: "group", "aria-label": "Question" }, text);

export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
export const sum = (values) => values.reduce((a, b) => a + b, 0);
export const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

// Calls the function that `keys` has for the pressed key; ctrl, alt and the like stay the page's.
export function onKeys(element, keys, { ctrl = false, when = () => true } = {}) {
  element.addEventListener("keydown", (e) => {
    if (!keys[e.key] || (e.ctrlKey && !ctrl) || e.metaKey || e.altKey || !when(e)) return;
    e.preventDefault();
    e.stopPropagation();
    keys[e.key](e);
  });
}

// JupyterLab must not see the keys of a view: an "a" would insert a cell, an arrow would leave the cell.
export function keepKeys(root) {
  root.addEventListener("keydown", (e) => e.ctrlKey || e.metaKey || e.altKey || e.stopPropagation());
}

// A model without a kernel: it holds the state and nobody else changes it.
export function pageModel(state) {
  const nothing = () => {};
  return { get: (name) => state[name], set: (name, value) => (state[name] = value), on: nothing, off: nothing, send: nothing, save_changes: nothing };
}

// Draws the static views of this key that are not drawn yet: the same output may be on the page twice.
export function mount(key, render) {
  for (const root of document.querySelectorAll(`[data-rl="${key}"]`)) {
    if (root.dataset.rlOn) continue;
    root.dataset.rlOn = "1";
    keepKeys(root);
    const state = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
    render({ model: pageModel(state), el: root.querySelector(".rl-stage") });
    root.querySelector(".rl-words").open = false;
  }
}

// The root of a view and its status line. Its style hides the record that stands below the view.
export function frame(model, el, label) {
  const status = h("p", { class: "rl-status", role: "status", "aria-live": "polite" });
  const report = () => {
    status.classList.toggle("rl-bad", model.get("failed"));
    status.textContent = (model.get("failed") ? "✗ " : "") + model.get("message");
  };
  model.on("change:message", report);
  model.on("change:failed", report);
  report();
  const root = h("section", { class: "rl-view tex2jax_ignore mathjax_ignore", "aria-label": label });
  keepKeys(root);
  el.replaceChildren(h("style", {}, `[data-rl-record="${model.get("mark")}"]{display:none}`), root);
  return { root, status };
}
