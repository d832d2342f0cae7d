// The same numbers as rows: sortable, and only the rows in sight are elements.

const ROW = 30; // pixels
const MARGIN = 20; // rows above and below those in sight

function nodeColumns({ nodes, byEdges }) {
  return [
    ["component", (n) => nodes.name[n], (n) => nodes.layer[n] * 1e4 + nodes.unit[n]],
    ["kind", (n) => nodes.kind[n], (n) => nodes.kind[n]],
    ["score", (n) => signed(nodes.score[n], 4), (n) => nodes.score[n]],
    ["magnitude", (n) => number(Math.abs(nodes.score[n]), 4), (n) => Math.abs(nodes.score[n])],
    ["interval", (n) => interval(nodes, n), (n) => (nodes.known ? nodes.low[n] : 0)],
    ...(byEdges ? [] : [["rank", (n) => String(nodes.rank[n] + 1), (n) => nodes.rank[n]]]),
  ];
}

function edgeColumns(model) {
  const { nodes, edges } = model;
  return [
    ["from", (e) => nodes.name[edges.source[e]], (e) => edges.source[e]],
    ["to", (e) => edgeEnd(model, e), (e) => edges.target[e]],
    ["score", (e) => signed(edges.score[e], 4), (e) => edges.score[e]],
    ["magnitude", (e) => number(Math.abs(edges.score[e]), 4), (e) => Math.abs(edges.score[e])],
    ["interval", (e) => interval(edges, e), (e) => (edges.known ? edges.low[e] : 0)],
  ];
}

/** A table that is shown in a scrolling box; `choose` is called with the row that is clicked. */
function scrollingTable(box, choose) {
  const table = { columns: [], rows: [], sort: 3, turned: true };
  const head = html("thead");
  const body = html("tbody");
  box.replaceChildren(html("table", {}, head, body));
  box.addEventListener("scroll", () => window.requestAnimationFrame(fill));

  function fill() {
    const first = Math.max(Math.floor(box.scrollTop / ROW) - MARGIN, 0);
    const last = Math.min(first + Math.ceil(box.clientHeight / ROW) + 2 * MARGIN, table.rows.length);
    const rows = table.rows.slice(first, last).map(row);
    body.replaceChildren(spacer(first), ...rows, spacer(table.rows.length - last));
  }

  function row(i) {
    const cells = table.columns.map(([, words], at) => html(at ? "td" : "th", at ? {} : { scope: "row" }, words(i)));
    const line = html("tr", {}, ...cells);
    line.addEventListener("click", () => choose(i));
    return line;
  }

  function spacer(rows) {
    const line = html("tr", { "aria-hidden": "true", class: "spacer" });
    line.style.height = `${rows * ROW}px`;
    return line;
  }

  function order() {
    const key = table.columns[table.sort][2];
    const turn = table.turned ? -1 : 1;
    table.rows.sort((a, b) => (key(a) < key(b) ? -turn : key(a) > key(b) ? turn : a - b));
  }

  function heading([name], at) {
    const button = html("button", { type: "button" }, name);
    button.addEventListener("click", () => {
      [table.turned, table.sort] = [table.sort === at && !table.turned, at];
      show(table.columns, table.rows);
      head.querySelectorAll("button")[at].focus();
    });
    const state = table.sort !== at ? "none" : table.turned ? "descending" : "ascending";
    return html("th", { scope: "col", "aria-sort": state }, button);
  }

  function show(columns, rows) {
    [table.columns, table.rows] = [columns, rows];
    head.replaceChildren(html("tr", {}, ...columns.map(heading)));
    order();
    fill();
  }
  return show;
}
