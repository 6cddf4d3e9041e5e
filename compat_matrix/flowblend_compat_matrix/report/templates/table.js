// The table of one pair's cells: sorted and filtered as the state says; what is filtered out is not there.
// A column: its key and head, the digits of its figures, and what they are counted in.
const COLUMNS = [
  ["cell", "cell"],
  ["verdict", "verdict"],
  ["speed", "speed", 2, "×"],
  ["psnr", "PSNR, dB", 1, ""],
  ["ssim", "SSIM", 3, ""],
  ["kept", "alignment", 1, "%"],
  ["flops", "FLOPs", 1, "%"],
  ["prompts", "prompts", 0, ""],
];
const FIGURES = COLUMNS.slice(2).map(([key]) => key);
const CHOSEN = ["pass", "degraded", "undecided"];

function figureOf(cell, key) {
  if (key === "psnr" && cell.figures.isExact) return Infinity;
  return cell.figures[key][0];
}

function figureText(cell, key) {
  const value = figureOf(cell, key);
  const interval = cell.figures[key][1];
  if (value === null) return "–";
  if (value === Infinity) return "exact";
  const [, , digits, unit] = COLUMNS.find(([name]) => name === key);
  const told = (one) => (unit === "%" ? 100 * one : one).toFixed(digits);
  return told(value) + unit + (interval ? ` (${interval.map(told).join("–")})` : "");
}

function makeTable(data, section, pair, cells, setState, open) {
  const form = section.querySelector("form");
  const field = (name) => form.elements[name];
  const table = section.querySelector("table");
  const rows = new Map();
  const heads = new Map();
  for (const [key, label] of COLUMNS) {
    const button = make("button", { type: "button", "data-sort": key }, label);
    button.addEventListener("click", () => {
      const [old, way] = current.sort.split(".");
      const usual = key === "cell" || key === "verdict" ? "up" : "down";
      setState({ sort: `${key}.${old !== key ? usual : way === "up" ? "down" : "up"}` });
    });
    heads.set(key, make("th", { scope: "col", class: key }, button));
  }
  table.tHead.append(make("tr", {}, ...heads.values()));
  let current = null;
  let shown = [];

  const measured = (key) => cells.map((cell) => figureOf(cell, key)).filter((value) => value !== null && value < Infinity);
  for (const [key, step] of [["psnr", 0.5], ["speed", 0.05]]) {
    const values = measured(key);
    const low = Math.floor(Math.min(...values, Infinity) / step) * step;
    const isThere = values.length > 0;
    Object.assign(field(key), { step, min: isThere ? low : 0, max: isThere ? Math.max(...values) : 1, disabled: !isThere });
  }

  function rowOf(cell) {
    if (!rows.has(cell)) {
      const name = make("button", { type: "button", class: "cell", "data-cell": cell.number }, cell.id);
      const mark = `${data.marks[cell.observed] ?? "?"} ${cell.observed}${cell.surprise ? `, ${cell.surprise}` : ""}`;
      const isOnFront = pair.front.includes(cell.id) ? make("span", { title: "on the front of speed and fidelity" }, " ▸front") : null;
      const verdict = make("td", { class: `verdict ${cell.observed}` }, mark, isOnFront);
      const figures = FIGURES.map((key) => make("td", { class: key }, figureText(cell, key)));
      rows.set(cell, make("tr", {}, make("th", { scope: "row" }, name), verdict, ...figures));
    }
    return rows.get(cell);
  }

  function fits(cell) {
    if (current.verdict && cell.observed !== current.verdict) return false;
    if (current.front && !pair.front.includes(cell.id)) return false;
    for (const key of ["psnr", "speed"]) {
      if (current[key] && !(figureOf(cell, key) >= Number(current[key]))) return false;
    }
    return current.q.toLowerCase().split(/\s+/).every((word) => cell.words.includes(word));
  }

  function compare(one, other) {
    const [key, way] = current.sort.split(".");
    const value = { cell: (cell) => cell.id, verdict: (cell) => cell.observed }[key] ?? ((cell) => figureOf(cell, key));
    const [a, b] = [value(one), value(other)];
    if (a === null || b === null) return (a === null) - (b === null) || one.number - other.number;
    const order = a < b ? -1 : a > b ? 1 : 0;
    return (way === "up" ? order : -order) || one.number - other.number;
  }

  // The fastest cell that is shown, and whether its interval says that it is as near as was asked.
  function answer() {
    const fast = shown.filter((cell) => CHOSEN.includes(cell.observed) && figureOf(cell, "speed") !== null);
    const best = fast.sort((a, b) => figureOf(b, "speed") - figureOf(a, "speed"))[0];
    const parts = [`${shown.length} of ${cells.length} cells. `];
    const isFiltered = ["psnr", "speed", "front", "verdict", "q"].some((name) => current[name]);
    if (best && isFiltered) {
      const of = [`${figureText(best, "speed")}, ${figureText(best, "psnr")} dB over ${figureText(best, "prompts")} prompts`];
      const interval = best.figures.psnr[1];
      if (current.psnr && !best.figures.isExact) {
        if (!interval) of.push("not certain, for there is no interval");
        else if (interval[0] >= Number(current.psnr)) of.push(`certainly at least ${current.psnr} dB`);
        else of.push(`not certainly at least ${current.psnr} dB: its interval begins at ${interval[0].toFixed(1)}`);
      }
      of.push(best.figures.isConfirmed ? "confirmed on prompts that chose nothing" : "not confirmed on other prompts");
      parts.push("Fastest of them: ", make("b", {}, best.id), `, ${of.join("; ")}. `, make("code", {}, commandOf(pair, best)));
    }
    section.querySelector(".found").replaceChildren(...parts);
  }

  function apply(state) {
    current = state;
    for (const name of ["psnr", "speed"]) {
      const input = field(name);
      input.value = state[name] || input.min;
      field(`${name}Shown`).textContent = state[name] || "any";
    }
    for (const name of ["verdict", "q"]) if (field(name).value !== state[name]) field(name).value = state[name];
    field("front").checked = Boolean(state.front);
    shown = cells.filter(fits).sort(compare);
    table.tBodies[0].replaceChildren(...shown.map(rowOf));
    const [key, way] = state.sort.split(".");
    for (const [name, head] of heads) {
      if (name === key) head.setAttribute("aria-sort", way === "up" ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    }
    answer();
    drawScatter(section.querySelector(".scatter"), data, pair, shown, open);
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    const slid = (name) => (Number(field(name).value) <= Number(field(name).min) ? "" : field(name).value);
    const [front, verdict, q] = [field("front").checked ? "1" : "", field("verdict").value, field("q").value];
    setState({ psnr: slid("psnr"), speed: slid("speed"), front, verdict, q });
  });
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    setState({ psnr: "", speed: "", front: "", verdict: "", q: "", sort: DEFAULTS.sort });
  });
  form.querySelector(".csv").addEventListener("click", () => download(data, pair, shown));
  table.addEventListener("click", (event) => {
    const button = event.target.closest("[data-cell]");
    if (button) open(Number(button.dataset.cell));
  });
  return { apply, order: () => shown.map((cell) => cell.number) };
}

// The cells that are shown, in their order, for a spreadsheet; none of their texts can be taken for a formula.
function csvOf(pair, cells) {
  const text = (value) => `"${String(value ?? "").replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
  const heads = ["cell", "schedule", "adapters", "verdict", "confirmed", ...FIGURES.flatMap((key) => [key, `${key}_low`, `${key}_high`]), "command"];
  const lines = cells.map((cell) => {
    const figures = FIGURES.flatMap((key) => {
      const [value, interval] = cell.figures[key];
      return [key === "psnr" && cell.figures.isExact ? "inf" : value ?? "", interval?.[0] ?? "", interval?.[1] ?? ""];
    });
    const start = [cell.id, cell.schedule, cell.adapters.join(" + "), cell.observed].map(text);
    return [...start, cell.figures.isConfirmed, ...figures, text(commandOf(pair, cell))].join(",");
  });
  return [heads.join(","), ...lines, ""].join("\r\n");
}

function download(data, pair, cells) {
  const url = URL.createObjectURL(new Blob([csvOf(pair, cells)], { type: "text/csv" }));
  make("a", { href: url, download: "cells.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
