// What all views share. No imports: each view is this file, its own file and one call of start(), in one function.

// An element. Attributes are set as text, on* as listeners; children are elements or text, never markup.
function h(tag, attributes = {}, ...children) {
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

// A labelled control: the words stand beside it and are its name.
function labelled(words, control, ...after) {
  return h("label", { class: "rl-field" }, h("span", {}, words), control, ...after);
}

function button(words, onclick, name = words) {
  return h("button", { type: "button", "aria-label": name, title: name, onclick }, words);
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const sum = (values) => values.reduce((a, b) => a + b, 0);
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

// Keys in a view are the view's: JupyterLab would insert a cell for an a, delete one for two d's, and go to another one
// for an arrow, whatever has the focus. Those with ctrl, alt and the like stay the page's.
function keepKeys(root) {
  root.addEventListener("keydown", (e) => e.ctrlKey || e.metaKey || e.altKey || e.stopPropagation());
}

// Draws the views of this key that are not drawn yet: the same output may be on the page twice.
function start(key, render) {
  for (const root of document.querySelectorAll(`[data-rl="${key}"]`)) {
    if (root.dataset.rlOn) continue;
    root.dataset.rlOn = "1";
    keepKeys(root);
    const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
    render(root.querySelector(".rl-stage"), data);
    root.querySelector(".rl-words").open = false;
  }
}
