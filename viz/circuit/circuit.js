// The page comes alive: what the reader chooses is one `state`, every change asks for one redraw,
// and a redraw shows the state. Without scripts the page keeps its still picture and its tables.

const page = Object.fromEntries(
  ["app", "controls", "stage", "canvas", "size", "count", "faith", "reset", "query", "found",
    "detail", "card", "rows", "caption", "tables"].map((name) => [name, document.getElementById(`circuit-${name}`)]),
);
page.svg = page.stage.querySelector("svg");
const model = readModel(document.getElementById("circuit-data").textContent);
const curves = edgeCurves(model);
const stops = sliderStops(model);
const state = {
  size: model.size, hidden: new Set(), query: "", pin: -1, hover: -1, edge: -1, example: 0, table: "nodes",
};
const elements = new Array(model.nodes.count).fill(null);
const layers = {};
let view = visible(model, state);
let waiting = 0;
let stale = true;

// ---- drawing

function redraw(changed = true) {
  stale = stale || changed;
  if (!waiting) waiting = window.requestAnimationFrame(render);
}

function render() {
  waiting = 0;
  if (stale) view = visible(model, state);
  const paths = state.pin >= 0 ? pathsThrough(model, view, state.pin) : null;
  const near = !paths && view.edges.length <= CROWD ? pointedAt() : null;
  const only = paths?.edge ?? near?.edge ?? null;
  const start = performance.now();
  drawEdges(page.canvas, model, curves, view, only, layers.colours);
  performance.clearMeasures("circuit-draw"); // the last one is for whoever wants to know
  performance.measure("circuit-draw", { start });
  layers.rules.setAttribute("d", groupRules(model, view, only));
  showNodes(paths?.node ?? near?.node);
  if (stale) showWords(paths);
  stale = false;
}

/** The edges that the pointer means, or nothing. */
function pointedAt() {
  if (state.hover >= 0) return directEdges(state.hover);
  return state.edge >= 0 ? { edge: oneEdge(state.edge) } : null;
}

function directEdges(n) {
  const edge = new Uint8Array(model.edges.count);
  const node = new Uint8Array(model.nodes.count);
  node[n] = 1;
  for (const e of model.into[n]) if (view.edge[e]) [edge[e], node[model.edges.source[e]]] = [2, 1];
  for (const e of model.out[n]) if (view.edge[e]) {
    edge[e] = 2;
    for (const reader of model.feeds[e]) node[reader] = 1;
  }
  return edge.includes(2) ? { edge, node } : null;
}

function oneEdge(e) {
  const edge = new Uint8Array(model.edges.count);
  edge[e] = 2;
  return edge;
}

function showNodes(lit) {
  const hits = search(model.nodes.name, state.query);
  const strongest = indices(model.nodes.count).filter((n) => view.node[n] && model.nodes.counts[n])
    .sort(strongerFirst);
  const named = new Set(strongest.slice(0, model.layout.labels));
  for (let n = 0; n < model.nodes.count; n++) {
    const shown = view.node[n] || hits?.has(n) || n === state.pin;
    if (!shown && !elements[n]) continue;
    const element = nodeOf(n);
    const faded = (lit && !lit[n]) || (hits && hits.size && !hits.has(n));
    element.style.display = shown ? "" : "none";
    element.classList.toggle("faded", Boolean(faded));
    element.classList.toggle("outside", !view.node[n]);
    element.classList.toggle("pinned", n === state.pin);
    element.classList.toggle("hit", Boolean(hits?.has(n)));
    const special = n === state.pin || n === state.hover || Boolean(hits?.has(n));
    element.classList.toggle("named", special || named.has(n));
    element.setAttribute("aria-pressed", String(n === state.pin));
  }
  keepOneTabStop(strongest[0]);
  page.canvas.classList.toggle("searching", Boolean(hits?.size));
  page.found.textContent = hits ? `${count(hits.size)} found` : "";
}

function strongerFirst(a, b) {
  return Math.abs(model.nodes.score[b]) - Math.abs(model.nodes.score[a]);
}

/** One node takes part in tabbing; arrow keys lead to the others. */
function keepOneTabStop(strongest) {
  const stop = elements.findIndex((element) => element?.getAttribute("tabindex") === "0");
  if (stop >= 0 && view.node[stop]) return;
  if (stop >= 0) elements[stop].setAttribute("tabindex", "-1");
  const next = strongest ?? elements.findIndex(Boolean);
  elements[next]?.setAttribute("tabindex", "0");
}

function showWords(paths) {
  const total = model.order.length;
  page.size.value = String(nearestStop(state.size));
  page.count.textContent = `${count(state.size)} of ${count(total)} ${model.level}`;
  page.size.setAttribute("aria-valuetext", page.count.textContent);
  page.reset.disabled = state.size === model.size;
  showFaithfulness();
  const chooseExample = (index) => { state.example = index; redraw(); };
  const parts = state.pin < 0 ? strongestPanel(model, view, pin)
    : pinnedPanel(model, view, state, pin, chooseExample);
  page.detail.replaceChildren(...parts);
  page.app.classList.toggle("has-pin", state.pin >= 0);
  window.clearTimeout(layers.tableTimer);
  layers.tableTimer = window.setTimeout(showTable, view.edges.length > CROWD ? 200 : 0, paths);
}

function showFaithfulness() {
  const point = nearestMeasured(model.curve, state.size);
  if (!point) return;
  const [size, value, low, high] = point;
  const ends = low === null || high === null ? "" : ` (${number(low, 2)} to ${number(high, 2)})`;
  const where = size === state.size ? "" : `, measured at ${count(size)}`;
  page.faith.replaceChildren("faithfulness ", html("b", {}, number(value ?? NaN, 2)), ends + where);
  const mark = page.app.querySelector(".now");
  const [left, width, first, last] = ["left", "width", "low", "high"].map((name) => Number(mark.dataset[name]));
  const share = Math.log(state.size / first) / Math.log(last / first);
  mark.setAttribute("transform", `translate(${left + width * Math.min(Math.max(share, 0), 1)} 0)`);
  const label = mark.querySelector("text");
  label.textContent = count(state.size);
  label.setAttribute("x", share > 0.7 ? -5 : 5);
  label.setAttribute("text-anchor", share > 0.7 ? "end" : "start");
  label.setAttribute("class", "halo");
}

function showTable(paths) {
  const byEdges = state.table === "edges";
  const { nodes } = model;
  const rows = byEdges ? view.edges.filter((e) => !paths || paths.edge[e])
    : indices(nodes.count).filter((n) => nodes.counts[n] && view.node[n] && (!paths || paths.node[n]));
  const where = paths ? ` on paths through ${nodes.name[state.pin]}` : " as shown in the graph";
  page.caption.textContent = `${count(rows.length)} ${byEdges ? "edges" : "components"}${where}`;
  layers.table(byEdges ? edgeColumns(model) : nodeColumns(model), rows);
}

function nodeOf(n) {
  if (elements[n]) return elements[n];
  const element = nodeElement(model, n);
  adopt(element, n);
  layers.nodes.append(element);
  return element;
}

function adopt(element, n) {
  elements[n] = element;
  element.dataset.node = String(n);
  element.setAttribute("tabindex", "-1");
  element.setAttribute("role", "button");
  element.setAttribute("aria-label", sentence(model, n));
  element.addEventListener("focus", () => focused(n));
  element.addEventListener("blur", () => { page.card.hidden = true; });
}

function readColours() {
  const style = window.getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  layers.colours = { positive: colour("--xc-p6"), negative: colour("--xc-n6"), soft: colour("--xh-soft"), paper: colour("--xh-paper") };
}

// ---- choosing

function pin(n) {
  state.pin = state.pin === n ? -1 : n;
  state.hover = state.edge = -1;
  redraw();
}

function unpin() {
  if (state.pin < 0) return;
  state.pin = -1;
  redraw();
}

function resize(size) {
  state.size = size;
  redraw();
}

function nearestStop(size) {
  return stops.reduce((best, stop, at) => (Math.abs(stop - size) < Math.abs(stops[best] - size) ? at : best), 0);
}

function pointed(event) {
  const { node, edge } = under(event);
  if (node < 0 && edge < 0) page.card.hidden = true;
  else {
    page.card.replaceChildren(...(node >= 0 ? nodeCard(model, view, node) : edgeCard(model, edge)));
    placeCard(page.card, event.clientX, event.clientY);
  }
  page.stage.style.cursor = node >= 0 ? "pointer" : "";
  if (node === state.hover && edge === state.edge) return;
  [state.hover, state.edge] = [node, edge];
  if (state.pin < 0 && view.edges.length <= CROWD) redraw(false);
}

function left() {
  page.card.hidden = true;
  if (state.hover < 0 && state.edge < 0) return;
  [state.hover, state.edge] = [-1, -1];
  redraw(false);
}

function clicked(event) {
  const { node, edge } = under(event);
  page.card.hidden = true;
  if (node < 0) {
    if (edge < 0) unpin();
    return;
  }
  nodeOf(node).focus({ preventScroll: true });
  pin(node);
}

function focused(n) {
  for (const element of elements) element?.setAttribute("tabindex", "-1");
  elements[n].setAttribute("tabindex", "0");
  cardAtFocus();
}

/** The card of the node that the keyboard is at; none if there is no such node. */
function cardAtFocus() {
  const n = Number(document.activeElement.dataset.node ?? -1);
  if (n < 0 || !elements[n].matches(":focus-visible")) {
    page.card.hidden = true;
    return;
  }
  const box = elements[n].getBoundingClientRect();
  page.card.replaceChildren(...nodeCard(model, view, n));
  placeCard(page.card, box.right, box.top + box.height / 2);
}

function typed(event) {
  const target = event.target.closest("[data-node]");
  if (!target) return;
  const n = Number(target.dataset.node);
  if (event.key in STEPS) elements[neighbour(n, STEPS[event.key])].focus();
  else if (event.key === "Enter" || event.key === " ") pin(n);
  else return;
  event.preventDefault();
}

// ---- starting

function prepareGraph() {
  readColours();
  page.svg.setAttribute("role", "group");
  page.svg.querySelector(".edges").replaceChildren();
  page.svg.querySelector(".left-out")?.remove();
  layers.nodes = page.svg.querySelector(".nodes");
  layers.nodes.querySelectorAll(".node").forEach((still) => still.remove());
  layers.rules = svgElement("path", { class: "rules" });
  page.svg.querySelector(".rules-box").replaceChildren(layers.rules);
  const bars = layers.nodes.querySelectorAll(".bar");
  indices(model.nodes.count).filter((n) => !model.nodes.counts[n]).forEach((n, at) => adopt(bars[at], n));
  page.svg.querySelectorAll("title").forEach((title) => title.remove());
  const ends = model.nodeOrder.filter((n) => view.node[n]);
  ends.sort(strongerFirst).reverse().forEach(nodeOf); // the strongest on top
  page.canvas.hidden = false;
}

function listen() {
  page.size.max = String(stops.length - 1);
  page.size.addEventListener("input", () => resize(stops[Number(page.size.value)]));
  page.reset.addEventListener("click", () => resize(model.size));
  page.query.addEventListener("input", () => { state.query = page.query.value.trim(); redraw(false); });
  page.query.addEventListener("keydown", (event) => {
    const hits = search(model.nodes.name, state.query);
    if (event.key === "Enter" && hits?.size) pin([...hits].sort(strongerFirst)[0]);
  });
  page.controls.addEventListener("submit", (event) => event.preventDefault());
  page.controls.querySelectorAll("[data-show]").forEach((box) => box.addEventListener("change", () => {
    state.hidden[box.checked ? "delete" : "add"](box.dataset.show);
    redraw();
  }));
  page.controls.querySelectorAll("[data-export]").forEach((button) =>
    button.addEventListener("click", EXPORTS[button.dataset.export]));
  page.tables.querySelectorAll("[data-table]").forEach((button) => button.addEventListener("click", () => {
    state.table = button.dataset.table;
    for (const one of page.tables.querySelectorAll("[data-table]")) {
      one.setAttribute("aria-pressed", String(one === button));
    }
    redraw();
  }));
  page.app.querySelectorAll(".dot[data-x]").forEach((dot) =>
    dot.addEventListener("click", () => resize(Number(dot.dataset.x))));
  page.stage.addEventListener("pointermove", pointed);
  page.stage.addEventListener("pointerleave", left);
  page.stage.addEventListener("click", clicked);
  page.stage.addEventListener("keydown", typed);
  document.addEventListener("keydown", (event) => event.key === "Escape" && unpin());
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); redraw(false); });
  window.matchMedia("print").addEventListener("change", () => { readColours(); render(); });
  document.addEventListener("scroll", cardAtFocus, { passive: true });
  new ResizeObserver(() => redraw(false)).observe(page.stage);
}

function start() {
  prepareGraph();
  layers.table = scrollingTable(page.rows, (i) => pin(state.table === "edges" ? model.edges.source[i] : i));
  listen();
  for (const part of document.querySelectorAll("[data-live]")) part.hidden = false;
  for (const part of document.querySelectorAll("[data-still]")) part.hidden = true;
  page.app.classList.add("live");
  render();
}

start();
