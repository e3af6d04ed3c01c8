// Views in lessons, and the relay in its frame, follow the colours of the page. The site names its own as JupyterLab does.
const frame = document.querySelector("iframe#relay-in-the-page");
const follow = () => {
  const light = document.body.dataset.mdColorScheme !== "slate";
  document.body.dataset.jpThemeLight = light;
  frame?.contentDocument?.documentElement?.setAttribute("theme", light ? "light" : "dark");
};
new MutationObserver(follow).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
follow();
// The frame is as tall as what it shows. It may have loaded before this script did.
const fit = () => {
  const inside = frame.contentDocument.documentElement;
  new ResizeObserver(() => (frame.style.height = `${inside.offsetHeight}px`)).observe(inside);
  follow();
};
frame?.addEventListener("load", fit);
if (frame?.contentWindow.location.href === frame?.src && frame?.contentDocument.readyState === "complete") fit();
