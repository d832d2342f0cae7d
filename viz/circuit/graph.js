// The graph: nodes are SVG elements, which can be focused and read aloud; edges lie on one canvas
// under them, because twenty thousand of them would be too many elements.

const CROWD = 2500; // of more edges than this, only the strongest are stroked, the others a haze
const STRONG = 600;

/** Each edge as eight numbers, a cubic curve; the same as `Layout.curve` in Python. */
function edgeCurves(model) {
  const { nodes, edges, layout, heads, groups } = model;
  const size = heads / groups;
  const at = indices(nodes.count).map((n) => nodePlace(model, n));
  const curves = new Float32Array(8 * edges.count);
  for (let e = 0; e < edges.count; e++) {
    const [source, target] = [edges.source[e], edges.target[e]];
    let [[x0, y0], [x1, y1]] = [at[source], at[target]];
    const reads = edges.reads[e];
    if ((reads === "k" || reads === "v") && size > 1) {
      const first = Math.floor(nodes.unit[target] / size) * size;
      x1 = (layout.columns[first] + layout.columns[first + size - 1]) / 2;
      y1 += layout.drop;
    }
    x1 += layout.largest * ({ q: -0.45, v: 0.45 }[reads] ?? 0);
    [x0, x1] = [alongBar(model, source, x0, x1), alongBar(model, target, x1, x0)];
    curves.set(bent(model, source, target, x0, y0, x1, y1), 8 * e);
  }
  return curves;
}

function bent({ nodes, layout }, source, target, x0, y0, x1, y1) {
  const sideways = nodes.kind[target] === "mlp" && nodes.kind[source] === "head" && y0 === y1;
  if (sideways) {
    const [reach, rise] = [(x1 - x0) * 0.3, layout.tall * 0.52];
    return [x0, y0, x0 + reach, y0 - rise, x1 - reach, y1 - rise, x1, y1];
  }
  const lift = (y0 - y1) * 0.45;
  const straight = y0 - y1 < 1.5 * layout.tall || Math.abs(x1 - x0) > 0.5 * layout.wide;
  const bend = straight ? 0 : (x1 <= x0 ? -0.62 : 0.62) * layout.wide;
  return [x0, y0, x0 + bend, y0 - lift, x1 + bend, y1 + lift, x1, y1];
}

function nodePlace({ nodes, layout }, n) {
  const kind = nodes.kind[n];
  if (layout.bars[kind]) return layout.bars[kind];
  return [kind === "head" ? layout.columns[nodes.unit[n]] : layout.mlp, layout.rows[nodes.layer[n]]];
}

/** Edges of the embedding and the logits spread along their bar, by where they lead. */
function alongBar({ nodes, layout }, n, x, other) {
  const bar = layout.bars[nodes.kind[n]];
  if (!bar) return x;
  const share = (other - bar[0]) / Math.max(layout.mlp - bar[0], 1);
  return bar[0] + 0.86 * bar[2] * Math.min(Math.max(share, -1), 1);
}

function shareOf(score, limit) {
  return limit ? Math.sqrt(Math.abs(score) / limit) : 0;
}

/** Groups edges that look the same: [level, negative, edges], the weakest first. */
function byLook(model, list) {
  const levels = model.layout.looks.length;
  const groups = new Map();
  for (const e of list) {
    const score = model.edges.score[e];
    const level = Math.min(Math.floor(shareOf(score, model.edges.limit) * levels), levels - 1);
    const key = 2 * level + (score < 0 ? 1 : 0);
    if (!groups.has(key)) groups.set(key, [level, score < 0, []]);
    groups.get(key)[2].push(e);
  }
  return [...groups.keys()].sort((a, b) => a - b).map((key) => groups.get(key));
}

/** Draws edges; `only` marks those of interest with 1 or, bolder, 2; the others become grey. */
function drawEdges(canvas, model, curves, view, only, colours) {
  const context = clearCanvas(canvas, model.layout);
  const lit = only ? view.edges.filter((e) => only[e]) : view.edges;
  const crowded = lit.length > CROWD;
  context.setLineDash([]);
  if (only && view.edges.length <= CROWD) {
    const others = view.edges.filter((e) => !only[e]);
    style(context, colours.soft, 0.8, 0.13, false);
    stroke(context, curves, others);
  }
  if (crowded) {
    const haze = hazeOf(model, curves, lit.slice(0, -STRONG), colours);
    context.globalAlpha = 1;
    context.drawImage(haze, 0, 0, haze.width / COARSE, haze.height / COARSE);
  }
  const sharp = crowded ? lit.slice(-STRONG) : lit;
  const bold = only ? sharp.filter((e) => only[e] === 2) : [];
  const plain = bold.length ? sharp.filter((e) => only[e] === 1) : sharp;
  const faint = Math.min(1, Math.sqrt(700 / Math.max(lit.length, 1)));
  for (const [level, negative, group] of byLook(model, plain)) {
    const [width, opacity] = model.layout.looks[level];
    style(context, negative ? colours.negative : colours.positive, width,
      level > 2 ? opacity : opacity * faint, negative);
    stroke(context, curves, group);
  }
  for (const [level, negative, group] of byLook(model, bold)) {
    const [width, opacity] = model.layout.looks[level];
    style(context, negative ? colours.negative : colours.positive, width + 0.4, Math.min(opacity + 0.45, 1), negative);
    stroke(context, curves, group);
  }
}

/** Fits the canvas to its place, in the pixels of the screen, and empties it. */
function clearCanvas(canvas, { width, height }) {
  const across = Math.round(canvas.clientWidth * Math.min(window.devicePixelRatio || 1, 3));
  const down = Math.round((across * height) / width);
  if (canvas.width !== across || canvas.height !== down) [canvas.width, canvas.height] = [across, down];
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, across, down);
  context.setTransform(across / width, 0, 0, across / width, 0, 0);
  return context;
}

function style(context, colour, width, alpha, dashed) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.globalAlpha = alpha;
  context.setLineDash(dashed ? [5, 3] : []);
}

function stroke(context, curves, list) {
  context.beginPath();
  for (const e of list) {
    const at = 8 * e;
    context.moveTo(curves[at], curves[at + 1]);
    context.bezierCurveTo(curves[at + 2], curves[at + 3], curves[at + 4], curves[at + 5],
      curves[at + 6], curves[at + 7]);
  }
  context.stroke();
}

/** The same edges as SVG paths, for the exported file. */
function edgePaths(model, curves, view, only) {
  const list = only ? view.edges.filter((e) => only[e]) : view.edges;
  const one = (e) => {
    const [x0, y0, ...rest] = Array.from(curves.subarray(8 * e, 8 * e + 8), (x) => +x.toFixed(1));
    return `M${x0} ${y0}C${rest.join(" ")}`;
  };
  return byLook(model, list).map(([level, negative, group]) =>
    svgElement("path", {
      class: negative ? "neg" : "pos",
      fill: "none",
      "stroke-width": model.layout.looks[level][0],
      "stroke-opacity": model.layout.looks[level][1],
      d: group.map(one).join(""),
    }),
  );
}

/** The edge under a point, the strongest within reach; -1 if there is none. */
function edgeAt(curves, view, only, x, y, reach) {
  const candidates = view.edges.slice(-4000);
  for (let i = candidates.length - 1; i >= 0; i--) {
    const e = candidates[i];
    if ((!only || only[e]) && distanceTo(curves, 8 * e, x, y) < reach) return e;
  }
  return -1;
}

function distanceTo(curves, at, x, y) {
  let nearest = Infinity;
  for (let step = 1; step < 24; step++) {
    const [t, u] = [step / 24, 1 - step / 24];
    const [a, b, c, d] = [u * u * u, 3 * u * u * t, 3 * u * t * t, t * t * t];
    const dx = a * curves[at] + b * curves[at + 2] + c * curves[at + 4] + d * curves[at + 6] - x;
    const dy = a * curves[at + 1] + b * curves[at + 3] + c * curves[at + 5] + d * curves[at + 7] - y;
    nearest = Math.min(nearest, dx * dx + dy * dy);
  }
  return Math.sqrt(nearest);
}

/** A line under each KV group that a shown edge leads to. */
function groupRules(model, view, only) {
  const { nodes, edges, layout, heads, groups } = model;
  const size = heads / groups;
  if (size === 1) return "";
  const found = new Set();
  for (const e of view.edges) {
    if ((only && !only[e]) || !"kv".includes(edges.reads[e])) continue;
    const first = Math.floor(nodes.unit[edges.target[e]] / size) * size;
    const y = layout.rows[nodes.layer[edges.target[e]]] + layout.drop;
    found.add(`M${layout.columns[first]} ${y}H${layout.columns[first + size - 1]}`);
  }
  return [...found].join("");
}

/** The element of a head or an MLP; the same as `_node` in Python, with a label for each. */
function nodeElement(model, n) {
  const { nodes, layout } = model;
  const score = nodes.score[n];
  const share = shareOf(score, nodes.limit);
  const radius = layout.smallest + (layout.largest - layout.smallest) * share;
  const step = score === 0 ? "z" : `${score < 0 ? "n" : "p"}${Math.max(Math.round(share * 8), 1)}`;
  const sign = score > 0 ? "pos" : score < 0 ? "neg" : "zero";
  const [x, y] = nodePlace(model, n);
  const group = svgElement("g", { class: `node ${sign} xc-${step}`, transform: `translate(${x} ${y})` });
  group.append(nodeShape(nodes.kind[n], radius + 3.5, "ring"));
  group.append(nodeShape(nodes.kind[n], radius + 2, "moat"), nodeShape(nodes.kind[n], radius, "body"));
  if (score < 0) {
    const bar = { class: "minus", "stroke-width": Math.max(radius / 5, 1) };
    group.append(svgElement("path", { ...bar, d: `M${-radius / 2} 0h${radius}` }));
  }
  const place = layout.below ? { y: radius + 11, class: "label mid", "text-anchor": "middle" }
    : { x: radius + 3.5, y: 3.6, class: "label" };
  const label = svgElement("text", place);
  label.textContent = shorten(nodes.name[n], 12);
  group.append(label);
  return group;
}

function nodeShape(kind, radius, css) {
  if (kind === "head") return svgElement("circle", { r: radius, class: css });
  const half = radius * 0.9;
  return svgElement("rect", { x: -half, y: -half, width: 2 * half, height: 2 * half, rx: 2.5, class: css });
}

function svgElement(name, attributes) {
  const element = document.createElementNS(page.svg.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
