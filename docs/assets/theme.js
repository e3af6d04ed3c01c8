// Views in lessons follow the colours of the page around them. The site names its own as JupyterLab does.
const follow = () => (document.body.dataset.jpThemeLight = document.body.dataset.mdColorScheme !== "slate");
new MutationObserver(follow).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
follow();
