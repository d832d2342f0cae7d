// Which node or edge a place means, for the pointer and for the arrow keys.

/** The node or edge under the pointer: nodes of the circuit first, then edges, then faint dots. */
function under(event) {
  const box = page.svg.getBoundingClientRect();
  const scale = model.layout.width / box.width;
  const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  const distances = (wanted) => indices(model.nodes.count).filter((n) => Boolean(view.node[n]) === wanted)
    .map((n) => [n, distanceToNode(n, x, y)]).sort((a, b) => a[1] - b[1])[0] ?? [-1, Infinity];
  const [shown, near] = distances(true);
  if (near < 4 * scale) return { node: shown, edge: -1 };
  const only = state.pin >= 0 ? pathsThrough(model, view, state.pin).edge : null;
  const edge = edgeAt(curves, view, only, x, y, 3.5 * scale);
  if (edge >= 0) return { node: -1, edge };
  const [dot, far] = distances(false);
  return { node: far < 4 * scale ? dot : -1, edge: -1 };
}

/** Pixels from a point to the rim of a node; a bar is as long as it is. */
function distanceToNode(n, x, y) {
  const { nodes, layout } = model;
  const [left, top] = nodePlace(model, n);
  const bar = layout.bars[nodes.kind[n]];
  if (bar) return Math.max(Math.abs(x - left) - bar[2], Math.abs(y - top) - 15);
  const share = view.node[n] ? shareOf(nodes.score[n], nodes.limit) : 0;
  return Math.hypot(x - left, y - top) - layout.smallest - (layout.largest - layout.smallest) * share;
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The nearest shown node in a direction: along the row, or in the next row that has one. */
function neighbour(n, [across, down]) {
  const [x, y] = nodePlace(model, n);
  const ahead = indices(model.nodes.count).filter((other) => {
    const [left, top] = nodePlace(model, other);
    if (other === n || !view.node[other]) return false;
    return across ? top === y && (left - x) * across > 0 : (top - y) * down > 0;
  });
  const cost = (other) => {
    const [left, top] = nodePlace(model, other);
    return across ? Math.abs(left - x) : 1e4 * Math.abs(top - y) + Math.abs(left - x);
  };
  return ahead.sort((a, b) => cost(a) - cost(b))[0] ?? n;
}
