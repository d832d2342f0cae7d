// What a reader takes away: the graph as SVG or PNG, and what is shown as JSON.

function download(name, blob) {
  const link = html("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  window.setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** The graph as it is shown, with its colours fixed, as the text of an SVG file. */
function graphAsSvg() {
  const copy = page.svg.cloneNode(true);
  const only = state.pin >= 0 ? pathsThrough(model, view, state.pin).edge : null;
  copy.querySelector(".edges").replaceChildren(...edgePaths(model, curves, view, only));
  copy.querySelectorAll("[data-node]").forEach((element) => {
    if (element.style.display === "none") element.remove();
    for (const name of ["tabindex", "role", "aria-label", "aria-pressed", "data-node"]) element.removeAttribute(name);
  });
  const style = window.getComputedStyle(document.documentElement);
  const names = new Set(copy.querySelector("style").textContent.match(/--x[ch]-[a-z0-9-]+(?=:)/g));
  const fixed = [...names].map((name) => `${name}:${style.getPropertyValue(name).trim()}`).join(";");
  const rules = copy.querySelector("style").textContent.replace(/@media screen[^{]*{:root{[^}]*}}/g, "");
  copy.querySelector("style").textContent = `${rules}.xh{${fixed}}${EXPORTED}`;
  copy.prepend(svgElement("rect", { width: "100%", height: "100%", fill: layers.colours.paper }));
  return new XMLSerializer().serializeToString(copy);
}

const EXPORTED = ".xk .node:not(.named) .label,.xk .ring{display:none}.xk .faded>:not(.moat){opacity:.16}";

function graphAsPng(done) {
  const picture = new Image();
  picture.addEventListener("load", () => {
    const { width, height } = model.layout;
    const canvas = html("canvas", { width: 2 * width, height: 2 * height });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    URL.revokeObjectURL(picture.src);
    canvas.toBlob(done, "image/png");
  });
  picture.src = URL.createObjectURL(new Blob([graphAsSvg()], { type: "image/svg+xml" }));
}

function graphAsJson() {
  const { nodes, edges } = model;
  const paths = state.pin >= 0 ? pathsThrough(model, view, state.pin) : null;
  const numbers = (rows, i) => ({ score: rows.score[i],
    ...(rows.known?.[i] ? { low: rows.low[i], high: rows.high[i] } : {}) });
  const point = nearestMeasured(model.curve, state.size);
  return JSON.stringify({
    title: model.title, level: model.level, size: state.size, answer: model.answer,
    faithfulness: point && { size: point[0], value: point[1], low: point[2], high: point[3] },
    pinned: state.pin < 0 ? null : nodes.name[state.pin],
    nodes: indices(nodes.count).filter((n) => view.node[n] && (!paths || paths.node[n])).map((n) => ({
      name: nodes.name[n], kind: nodes.kind[n], ...(nodes.counts[n] ? { layer: nodes.layer[n] } : {}),
      ...(nodes.kind[n] === "head" ? { head: nodes.unit[n] } : {}), ...numbers(nodes, n) })),
    edges: view.edges.filter((e) => !paths || paths.edge[e]).reverse().map((e) => ({
      source: nodes.name[edges.source[e]], target: edgeEnd(model, e), reads: edges.reads[e], ...numbers(edges, e) })),
  }, null, 1);
}

const EXPORTS = {
  svg: () => download("circuit.svg", new Blob([graphAsSvg()], { type: "image/svg+xml" })),
  png: () => graphAsPng((blob) => download("circuit.png", blob)),
  json: () => download("circuit.json", new Blob([graphAsJson()], { type: "application/json" })),
};
