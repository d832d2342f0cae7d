// The circuit as columns of numbers, unpacked once, and what follows from them: ranks, neighbours,
// what is shown at a size, and which paths lead through a node. Nothing here touches the page.

const KINDS = { e: "embed", h: "head", m: "mlp", l: "logits" };
const INPUTS = { q: "q", k: "k", v: "v", m: "mlp", l: "logits" };
const LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

function readModel(text) {
  const data = JSON.parse(text);
  const nodes = readRows(data.nodes);
  nodes.kind = Array.from(data.nodes.kind, (letter) => KINDS[letter]);
  nodes.name = data.nodes.name;
  nodes.layer = data.nodes.layer;
  nodes.unit = data.nodes.unit;
  nodes.counts = nodes.kind.map((kind) => kind === "head" || kind === "mlp");
  nodes.limit = largest(nodes.score.filter((_, n) => nodes.counts[n]));

  const edges = readRows(data.edges);
  edges.source = runningSums(data.edges.source);
  edges.target = runningSums(data.edges.target);
  edges.reads = Array.from(data.edges.reads, (letter) => INPUTS[letter]);
  edges.limit = largest(edges.score);

  const model = { ...data, nodes, edges, byEdges: data.level === "edges" };
  model.feeds = edgeTargets(model);
  [model.into, model.out] = neighbours(model);
  model.nodeOrder = ranking(nodes, indices(nodes.count).filter((n) => nodes.counts[n]), data.signed);
  model.edgeOrder = ranking(edges, indices(edges.count), data.signed && model.byEdges);
  nodes.rank = ranks(model.nodeOrder, nodes.count);
  edges.rank = ranks(model.edgeOrder, edges.count);
  model.order = model.byEdges ? model.edgeOrder : model.nodeOrder;
  model.held = model.order.filter((i) => (model.byEdges ? edges : nodes).kept[i]).length;
  model.weakFirst = Int32Array.from(indices(edges.count)).sort(
    (a, b) => Math.abs(edges.score[a]) - Math.abs(edges.score[b]),
  );
  return model;
}

function readRows(columns) {
  const score = readNumbers(columns.score);
  const known = columns.known ? Array.from(columns.known, Number) : null;
  const kept = Uint8Array.from(columns.kept, Number);
  const [low, high] = known ? [readNumbers(columns.low), readNumbers(columns.high)] : [null, null];
  return { count: score.length, score, kept, known, low, high };
}

/** Whole digits and a letter for the power of ten; division keeps decimals exact. */
function readNumbers(column) {
  return Float64Array.from(column.digits, (digits, at) => {
    const power = column.top - LETTERS.indexOf(column.powers[at]);
    return power < 0 ? digits / 10 ** -power : digits * 10 ** power;
  });
}

function runningSums(steps) {
  let sum = 0;
  return Int32Array.from(steps, (step) => (sum += step));
}

function indices(count) {
  return Array.from({ length: count }, (_, at) => at);
}

function largest(values) {
  return values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
}

/** The nodes that each edge feeds: keys and values are read by all heads of their group. */
function edgeTargets({ nodes, edges, heads, groups }) {
  const alone = indices(nodes.count).map((n) => [n]);
  const groupOf = (n) => `${nodes.layer[n]}:${Math.floor(nodes.unit[n] / (heads / groups))}`;
  const members = new Map();
  nodes.kind.forEach((kind, n) => {
    if (kind !== "head") return;
    if (!members.has(groupOf(n))) members.set(groupOf(n), []);
    members.get(groupOf(n)).push(n);
  });
  return edges.reads.map((reads, e) =>
    reads === "k" || reads === "v" ? members.get(groupOf(edges.target[e])) : alone[edges.target[e]],
  );
}

function neighbours({ nodes, edges, feeds }) {
  const into = indices(nodes.count).map(() => []);
  const out = indices(nodes.count).map(() => []);
  for (let e = 0; e < edges.count; e++) {
    out[edges.source[e]].push(e);
    for (const n of feeds[e]) into[n].push(e);
  }
  return [into, out];
}

/** The circuit first, then what would join it next. */
function ranking(rows, candidates, signed) {
  const strength = signed ? (i) => rows.score[i] : (i) => Math.abs(rows.score[i]);
  return candidates.sort(
    (a, b) => rows.kept[b] - rows.kept[a] || strength(b) - strength(a) || a - b,
  );
}

function ranks(order, count) {
  const found = new Int32Array(count).fill(-1);
  order.forEach((i, rank) => (found[i] = rank));
  return found;
}

/** Sizes the slider stops at: every measured one, the circuit's own, and steps of equal ratio. */
function sliderStops(model) {
  const total = Math.max(model.order.length, 1);
  const steps = indices(201).map((at) => Math.round(total ** (at / 200)));
  const measured = model.curve.map(([size]) => size).filter((size) => size <= total);
  return [...new Set([...steps, ...measured, model.size])].sort((a, b) => a - b);
}

/** What is shown: a mark for each node and edge, and the edges from weak to strong. */
function visible(model, state) {
  const { nodes, edges, byEdges } = model;
  const limit = state.size === model.size ? model.held
    : state.size < model.size ? Math.min(state.size, model.held) : state.size;
  const inCircuit = byEdges ? touched(model, limit, state.size === model.size)
    : Uint8Array.from(nodes.rank, (rank, n) => !nodes.counts[n] || rank < limit);
  const node = inCircuit.map((on, n) => on && !state.hidden.has(nodes.kind[n]));
  const edge = new Uint8Array(edges.count);
  const list = [];
  for (const e of model.weakFirst) {
    const size = byEdges ? edges.rank[e] < limit : model.feeds[e].some((n) => node[n]);
    if (!size || !node[edges.source[e]] || state.hidden.has(`to-${edges.reads[e]}`)) continue;
    if (nodes.counts[edges.target[e]] && state.hidden.has(nodes.kind[edges.target[e]])) continue;
    if (state.hidden.has(edges.score[e] < 0 ? "negative" : "positive")) continue;
    edge[e] = 1;
    list.push(e);
  }
  return { node, edge, edges: list, limit };
}

/** At edge level a node is in the circuit if it writes into it, or alone reads from it. */
function touched({ nodes, edges, edgeOrder, feeds }, limit, asFound) {
  const on = Uint8Array.from(nodes.kept, (kept, n) => !nodes.counts[n] || (asFound && kept));
  for (const e of edgeOrder.slice(0, limit)) {
    on[edges.source[e]] = 1;
    if (feeds[e].length === 1) on[feeds[e][0]] = 1;
  }
  return on;
}

/** All that lies on a shown path through a node; 2 marks the edges at the node itself. */
function pathsThrough(model, view, pin) {
  const node = new Uint8Array(model.nodes.count);
  const edge = new Uint8Array(model.edges.count);
  const up = (e) => [model.edges.source[e]];
  const down = (e) => model.feeds[e];
  for (const [links, ends] of [[model.into, up], [model.out, down]]) {
    for (const e of links[pin]) edge[e] = 2 * view.edge[e];
    const waiting = [pin];
    const seen = new Set(waiting);
    while (waiting.length) {
      for (const e of links[waiting.pop()]) {
        if (!view.edge[e]) continue;
        edge[e] = Math.max(edge[e], 1);
        for (const n of ends(e)) {
          if (!seen.has(n)) waiting.push(n);
          seen.add(n);
        }
      }
    }
    for (const n of seen) node[n] = 1;
  }
  return { node, edge };
}

/** Nodes a search means: `m7` and `a3.h5` by name, `a3` all of a layer, else what begins so. */
function search(names, query) {
  if (!query) return null;
  const exact = indices(names.length).filter(
    (n) => names[n] === query || names[n].startsWith(`${query}.`),
  );
  return new Set(
    exact.length ? exact : indices(names.length).filter((n) => names[n].startsWith(query)),
  );
}

/** The measured point of the curve whose size is nearest, by ratio. */
function nearestMeasured(curve, size) {
  const distance = ([measured]) => Math.abs(Math.log(measured / size));
  return curve.reduce((best, point) => (best && distance(best) <= distance(point) ? best : point), null);
}
