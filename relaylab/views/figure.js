// Draws the figures of this key that are not drawn yet, now or when plotly.js has loaded.
(()=>{const draw=()=>{for(const f of document.querySelectorAll('[data-rl-figure="KEY"]:not(.rl-drawn)')){
const {data,layout}=JSON.parse(f.querySelector('script[type="application/json"]').textContent);
f.classList.add("rl-drawn");f.querySelector("details").open=false;
const live=f.querySelector(".rl-live");Plotly.newPlot(live,data,layout,{displaylogo:false});
new ResizeObserver(()=>live.offsetWidth&&Plotly.Plots.resize(live)).observe(live);}};
window.Plotly?draw():addEventListener("rl-plotly",draw);})()
