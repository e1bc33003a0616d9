"use strict";
// Unpacks plotly.js and draws every figure in the colours of the page, again whenever light and dark change.

// No button may send data elsewhere. By default, plotly.js has an upload to its makers' cloud and a logo as link.
const CONFIG = {
  responsive: true, displaylogo: false, showSendToCloud: false, showEditInChartStudio: false, showLink: false,
  plotlyServerURL: "", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
};
const dark = matchMedia("screen and (prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function template() {
  const axis = {
    gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"),
    automargin: true, exponentformat: "e", title: { standoff: 8 },
  };
  const scene = { backgroundcolor: "rgba(0,0,0,0)", gridcolor: colour("--line"), color: colour("--ink") };
  return {
    layout: {
      font: { color: colour("--ink"), family: getComputedStyle(document.body).fontFamily, size: 12.5 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
      margin: { l: 55, r: 15, t: 45, b: 45 },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--muted"), activecolor: colour("--accent") },
      xaxis: axis, yaxis: axis, scene: { xaxis: scene, yaxis: scene, zaxis: scene },
    },
  };
}

async function draw(script) {
  const place = document.getElementById(script.dataset.of);
  const figure = JSON.parse(script.textContent);
  figure.layout.template = template();
  await Plotly.react(place, figure.data, figure.layout, CONFIG);
  place.dataset.drawn = dark.matches ? "dark" : "light";
}

async function drawAll() {
  for (const script of document.querySelectorAll("script[data-of]")) {
    await draw(script);
    await new Promise((resume) => setTimeout(resume)); // so that the page can be scrolled meanwhile
  }
}

async function unpack() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

for (const button of document.querySelectorAll(".command button")) {
  const text = button.parentElement.querySelector("pre");
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(text);
    button.textContent = document.execCommand("copy") ? "copied" : "selected"; // also works in a page opened from a file
  });
}

unpack()
  .then(drawAll)
  .then(() => {
    dark.addEventListener("change", drawAll);
    document.documentElement.dataset.drawn = "all";
  })
  .catch((error) => {
    const message = document.getElementById("problem");
    message.hidden = false;
    message.textContent = `The figures cannot be drawn (${error}); a browser of 2023 or later is needed.`;
    throw error;
  });
