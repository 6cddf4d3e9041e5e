// Charts in SVG at the width that there is, so that their text has the size of all other text.
function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Round numbers in a range, as many as there is room for at `apart` pixels each.
function ticksIn(low, high, pixels, apart) {
  const rough = ((high - low) * apart) / pixels || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + 1e-9; at += 1) found.push(Number((at * step).toPrecision(6)));
  return found;
}

// Axes, and the functions that place a value: x may be a ratio, of which equal factors are equally far apart.
function axes(holder, height, xs, ys, labels, isRatio = false) {
  const width = Math.max(280, holder.clientWidth);
  const [left, right, top, bottom] = [52, 16, 30, 48];
  const scale = isRatio ? Math.log : (value) => value;
  const ends = (values, room) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const more = (high - low || Math.abs(high) || 1) * room;
    return [low - more, high + more];
  };
  const [x0, x1] = ends(xs.map(scale), 0.04);
  const [y0, y1] = ends(ys, 0.06);
  const x = (value) => left + ((scale(value) - x0) / (x1 - x0)) * (width - left - right);
  const y = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - bottom - top);
  const svg = draw("svg", { width, height, role: "img", "aria-label": labels.join(" against ") });
  let last = -Infinity;
  const back = isRatio ? Math.exp : (value) => value;
  for (const tick of ticksIn(back(x0), back(x1), width, isRatio ? 34 : 64)) {
    if (x(tick) - last < 56 || x(tick) > width - right || (!isRatio && !Number.isInteger(tick))) continue;
    last = x(tick);
    svg.append(draw("line", { class: "grid", x1: x(tick), x2: x(tick), y1: top, y2: height - bottom }));
    svg.append(draw("text", { x: x(tick), y: height - bottom + 20, "text-anchor": "middle" }, `${tick}${isRatio ? "×" : ""}`));
  }
  for (const tick of ticksIn(y0, y1, height, 44)) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
    svg.append(draw("text", { x: left - 8, y: y(tick) + 5, "text-anchor": "end" }, String(tick)));
  }
  svg.append(draw("text", { x: 0, y: 16 }, labels[0]));
  svg.append(draw("text", { x: width - right, y: height - 6, "text-anchor": "end" }, labels[1]));
  return { svg, x, y, width, left, right, top, bottom: height - bottom };
}

function drawScatter(holder, data, pair, cells, open) {
  const known = cells.filter((cell) => figureOf(cell, "speed") !== null && Number.isFinite(figureOf(cell, "psnr") ?? NaN));
  holder.hidden = known.length < 2;
  if (holder.hidden) return;
  const [xs, ys] = ["speed", "psnr"].map((key) => known.map((cell) => figureOf(cell, key)));
  const plot = axes(holder, 380, xs, ys, ["PSNR to large-only, dB", "times as fast as large-only"], true);
  if (data.minPsnr && plot.y(data.minPsnr) > plot.top && plot.y(data.minPsnr) < plot.bottom) {
    const at = plot.y(data.minPsnr);
    plot.svg.append(draw("line", { class: "budget", x1: plot.left, x2: plot.width - plot.right, y1: at, y2: at }));
  }
  for (const cell of [...known].reverse()) {
    const isOnFront = pair.front.includes(cell.id);
    const title = `${cell.id}: ${figureText(cell, "speed")}, ${figureText(cell, "psnr")} dB, ${cell.observed}`;
    const place = { cx: plot.x(figureOf(cell, "speed")), cy: plot.y(figureOf(cell, "psnr")), r: isOnFront ? 6 : 4 };
    const circle = draw("circle", { ...place, class: `point ${cell.observed}${isOnFront ? " front" : ""}`, "data-cell": cell.number }, draw("title", {}, title));
    circle.addEventListener("click", () => open(cell.number));
    plot.svg.append(circle);
  }
  const front = pair.isConfirmed ? "on the confirmed front" : "on the front, which nothing confirmed";
  holder.replaceChildren(plot.svg, make("figcaption", {}, `Every cell above that was measured; large and ringed: ${front}. Dashed: the budget of PSNR.`));
}

function drawDivergence(holder, pair) {
  const branch = ["guided", "cond"].find((name) => pair.divergence.some((row) => row.branch === name)) ?? pair.divergence[0].branch;
  const rows = pair.divergence.filter((row) => row.branch === branch);
  const quantities = [["relative_l2", "‖small − large‖ / ‖large‖"], ["cosine", "cosine of the two"]];
  const boxes = quantities.map(() => make("figure"));
  holder.replaceChildren(...boxes);
  quantities.forEach(([key, label], at) => {
    const box = boxes[at];
    const plot = axes(box, 240, rows.map((row) => row.step_index + 1), rows.map((row) => row[key]), [label, "step"]);
    for (const step of pair.boundaries) {
      plot.svg.append(draw("line", { class: "budget", x1: plot.x(step + 0.5), x2: plot.x(step + 0.5), y1: plot.top, y2: plot.bottom }));
    }
    const points = rows.map((row) => `${plot.x(row.step_index + 1)},${plot.y(row[key])}`).join(" ");
    plot.svg.append(draw("polyline", { class: "curve", points }));
    box.append(plot.svg);
  });
}
