// Draws the figures of this key that are not drawn yet, now or when plotly.js has loaded.
(()=>{const draw=()=>{for(const f of document.querySelectorAll('[data-rl-figure="KEY"]:not(.rl-drawn)')){
const {data,layout}=JSON.parse(f.querySelector('script[type="application/json"]').textContent);
f.classList.add("rl-drawn");f.querySelector("details").open=false;
const live=f.querySelector(".rl-live");Plotly.newPlot(live,data,layout,{displaylogo:false});
// Plotly draws some time after it is asked, maybe for a width that lasts no frame; so each drawing is compared again.
const fit=new ResizeObserver(()=>{const width=live.offsetWidth;
if(width>10&&Math.abs(width-live._fullLayout.width)>1)
Plotly.Plots.resize(live).then(()=>{fit.unobserve(live);fit.observe(live);});});
fit.observe(live);}};
window.Plotly?draw():addEventListener("rl-plotly",draw);})()
