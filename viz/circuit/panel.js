// Words and small pictures beside the graph: the card under the pointer, the pinned component, its
// attention. Names and tokens come from a model: they only ever become text.

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function shorten(text, width) {
  const signs = Array.from(text);
  return signs.length <= width ? text : `${signs.slice(0, width - 1).join("")}…`;
}

function visibleToken(token) {
  return `“${shorten(token.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/\r/g, "␍").replace(/ /g, "\u00a0"), 24)}”`;
}

function number(value, digits = 3) {
  if (!Number.isFinite(value)) return "undefined";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-4 || size >= 1e6)
    ? size.toExponential(digits - 1) : String(+size.toPrecision(digits));
  return (value < 0 ? "−" : "") + text.replace("e-", "e−").replace("e+", "e");
}

function signed(value, digits) {
  return (value > 0 ? "+" : "") + number(value, digits);
}

function interval(rows, i) {
  if (!rows.known || !rows.known[i]) return "";
  return `${signed(rows.low[i])} to ${signed(rows.high[i])}`;
}

function count(amount) {
  return amount.toLocaleString("en-US");
}

function describe({ nodes }, n) {
  const kind = nodes.kind[n];
  if (kind === "embed") return "the embedding";
  if (kind === "logits") return "the logits";
  const where = `layer ${nodes.layer[n]}`;
  return kind === "mlp" ? `MLP of ${where}` : `attention head ${nodes.unit[n]} of ${where}`;
}

/** What a node is in a sentence, for the card and for screen readers. */
function sentence(model, n) {
  const { nodes } = model;
  const ends = interval(nodes, n);
  if (!nodes.counts[n]) return `${nodes.name[n]}, ${describe(model, n)}`;
  return `${nodes.name[n]}, ${describe(model, n)}, score ${signed(nodes.score[n])}${ends ? `, ${ends}` : ""}`;
}

function edgeEnd(model, e) {
  const { nodes, edges } = model;
  const [target, reads] = [edges.target[e], edges.reads[e]];
  if (reads === "mlp" || reads === "logits") return nodes.name[target];
  const members = model.feeds[e].map((n) => nodes.name[n]);
  const names = members.length < 2 || reads === "q" ? nodes.name[target]
    : `${members[0]} … ${members[members.length - 1]}`;
  return `${names} ${reads}`;
}

function scoreLine(rows, i) {
  const ends = interval(rows, i);
  return html("p", { class: "xk-score" }, html("b", {}, signed(rows.score[i], 4)), ends ? html("span", {}, ends) : null);
}

function nodeCard(model, view, n) {
  const { nodes } = model;
  const parts = [html("h4", {}, nodes.name[n]), html("p", { class: "xk-soft" }, describe(model, n))];
  if (nodes.counts[n]) parts.push(scoreLine(nodes, n));
  const rank = nodes.counts[n] && !model.byEdges ? `rank ${nodes.rank[n] + 1} of ${model.order.length}` : "";
  const place = view.node[n] ? "" : "not in this circuit";
  const words = [rank, place].filter(Boolean).join(", ");
  if (words) parts.push(html("p", { class: "xk-soft" }, words));
  const shown = (list) => list.filter((e) => view.edge[e]).length;
  const [into, out] = [shown(model.into[n]), shown(model.out[n])];
  if (into + out) parts.push(html("p", { class: "xk-soft" }, `${count(into)} edges in, ${count(out)} out`));
  return parts;
}

function edgeCard(model, e) {
  const { nodes, edges } = model;
  return [
    html("h4", {}, `${nodes.name[edges.source[e]]} → ${edgeEnd(model, e)}`),
    scoreLine(edges, e),
    html("p", { class: "xk-soft" }, `edge ${count(edges.rank[e] + 1)} of ${count(edges.count)} by rank`),
  ];
}

/** Places the card beside a point of the window, inside it. */
function placeCard(card, x, y) {
  card.hidden = false;
  const { width, height } = card.getBoundingClientRect();
  const left = x + 18 + width > window.innerWidth ? x - 18 - width : x + 18;
  card.style.left = `${Math.max(left, 4)}px`;
  card.style.top = `${Math.min(Math.max(y - height / 2, 4), window.innerHeight - height - 4)}px`;
}

/** A list of buttons with a bar for each score; `items` are [text, title, score, node]. */
function barList(items, limit, pin) {
  const list = html("ol", { class: "xk-list" });
  for (const [text, score, node] of items) {
    const bar = html("i", { class: score < 0 ? "neg" : "pos" });
    bar.style.width = `${Math.max((100 * Math.abs(score)) / (limit || 1), 1.5)}%`;
    const button = html("button", { type: "button" }, html("span", {}, text),
      html("span", { class: "xk-bar" }, bar), html("span", { class: "num" }, signed(score)));
    button.addEventListener("click", () => pin(node));
    list.append(html("li", {}, button));
  }
  return list;
}

function strongestPanel(model, view, pin) {
  const { nodes } = model;
  const order = indices(nodes.count).filter((n) => nodes.counts[n] && view.node[n]);
  order.sort((a, b) => Math.abs(nodes.score[b]) - Math.abs(nodes.score[a]));
  const items = order.slice(0, 10).map((n) => [nodes.name[n], nodes.score[n], n]);
  return [html("h3", {}, "Strongest components"), barList(items, nodes.limit, pin)];
}

function pinnedPanel(model, view, state, pin, choose) {
  const { nodes, edges } = model;
  const n = state.pin;
  const close = html("button", { type: "button", class: "xk-close", title: "Unpin (Escape)" }, "Unpin");
  close.addEventListener("click", () => pin(n));
  const parts = [html("div", { class: "xk-pinned" }, html("h3", {}, nodes.name[n]), close),
    html("p", { class: "xk-soft" }, describe(model, n))];
  if (nodes.counts[n]) parts.push(scoreLine(nodes, n));
  const strongest = (list) => list.filter((e) => view.edge[e])
    .sort((a, b) => Math.abs(edges.score[b]) - Math.abs(edges.score[a])).slice(0, 5);
  const [into, out] = [strongest(model.into[n]), strongest(model.out[n])];
  const source = (e) => edges.source[e];
  if (into.length) {
    const via = (e) => (nodes.kind[n] === "head" ? ` → ${edges.reads[e]}` : "");
    parts.push(html("h4", {}, "Reads from"), barList(
      into.map((e) => [nodes.name[source(e)] + via(e), edges.score[e], source(e)]), edges.limit, pin));
  }
  if (out.length) {
    parts.push(html("h4", {}, "Writes to"), barList(
      out.map((e) => [edgeEnd(model, e), edges.score[e], edges.target[e]]), edges.limit, pin));
  }
  return [...parts, ...attentionPanel(model, state, nodes.name[n], choose)];
}

function attentionPanel(model, state, name, choose) {
  const found = model.examples.filter(({ attention }) => Object.hasOwn(attention, name));
  if (!found.length) return [];
  const at = Math.min(state.example, found.length - 1);
  const { tokens, attention } = found[at];
  const select = html("select", { "aria-label": "Example prompt" });
  found.forEach((example, index) => {
    const option = html("option", { value: index }, `${index + 1}. ${shorten(example.tokens.join("").trim(), 44)}`);
    option.selected = index === at;
    select.append(option);
  });
  select.addEventListener("change", () => choose(Number(select.value)));
  const said = html("p", { class: "xk-soft", "aria-live": "polite" }, lastQuery(tokens, attention[name]));
  return [html("h4", {}, "Attention"), select, attentionMatrix(tokens, attention[name], said), said];
}

function weightAt(weights, query, key) {
  return weights[(query * (query + 1)) / 2 + key] / 1000;
}

/** Where the last token looks, in words. */
function lastQuery(tokens, weights) {
  const query = tokens.length - 1;
  const keys = indices(tokens.length).sort((a, b) => weightAt(weights, query, b) - weightAt(weights, query, a));
  const words = keys.slice(0, 3).map((key) => `${visibleToken(tokens[key])} ${weightAt(weights, query, key).toFixed(2)}`);
  return `${visibleToken(tokens[query])} looks at ${words.join(", ")}.`;
}

/** Queries downward, keys to the right; the tokens stand on the diagonal and name both. */
function attentionMatrix(tokens, weights, said) {
  const room = 84;
  const cell = Math.max(Math.min((330 - room) / tokens.length, 17), 2);
  const side = cell * tokens.length;
  const box = svgElement("svg", { class: "xk-attention", viewBox: `0 0 ${side + room} ${side}`, role: "img",
    "aria-label": lastQuery(tokens, weights) });
  const steps = indices(9).map(() => "");
  for (let query = 0; query < tokens.length; query++) {
    for (let key = 0; key <= query; key++) {
      const place = `M${(key * cell).toFixed(2)} ${(query * cell).toFixed(2)}`;
      const edge = Math.max(cell - 1, cell * 0.9).toFixed(2);
      steps[Math.round(Math.min(weightAt(weights, query, key), 1) * 8)] += `${place}h${edge}v${edge}h-${edge}z`;
    }
  }
  steps.forEach((d, step) => d && box.append(svgElement("path", { class: `xc-s${step}`, d })));
  if (cell >= 8) {
    tokens.forEach((token, at) => {
      const label = svgElement("text", { x: (at + 1) * cell + 4, y: (at + 0.5) * cell + 3.5 });
      label.textContent = shorten(token.trim() || visibleToken(token), 12);
      box.append(label);
    });
  }
  box.addEventListener("pointermove", (event) => {
    const scale = (side + room) / box.getBoundingClientRect().width;
    const [key, query] = [event.offsetX, event.offsetY].map((pixels) => Math.floor((pixels * scale) / cell));
    if (key > query || query >= tokens.length || key < 0) return;
    const weight = weightAt(weights, query, key).toFixed(3);
    said.textContent = `${visibleToken(tokens[query])} looks at ${visibleToken(tokens[key])}: ${weight}`;
  });
  return box;
}
