// The verdict grid of one pair: filters, and one tab stop whose arrows move from cell to cell.
function makeGrid(section, cells, open) {
  const table = section.querySelector("table.matrix");
  const form = section.querySelector(".filters");
  const output = form.querySelector("output");
  const nothing = section.querySelector(".nothing");
  const rows = [...table.querySelectorAll("tbody tr:not(.group)")].map((row) => ({
    row,
    buttons: [...row.querySelectorAll("td")].map((td) => td.querySelector("button")),
  }));
  const all = rows.flatMap(({ buttons }) => buttons.filter(Boolean));
  const points = [...section.querySelectorAll("svg [data-cell]")];
  // Long groups are folded where they would be most of the page; a filter unfolds what it finds.
  const folds = [...table.querySelectorAll(".fold")].map((button) => {
    const body = button.closest("tbody");
    const many = matchMedia("(max-width: 640px)").matches || "closed" in button.dataset ? 6 : Infinity;
    return { button, body, closed: body.rows.length - 1 > many };
  });
  let current = null;

  function fold() {
    const isFiltered = form.classList.contains("active");
    for (const { button, body, closed } of folds) {
      body.classList.toggle("closed", closed && !isFiltered);
      button.setAttribute("aria-expanded", String(!closed || isFiltered));
    }
    if (!isShown(current)) setCurrent(shown()[0] ?? null);
  }

  const cellOf = (button) => cells[Number(button.dataset.cell)];
  const isFound = (button) => button && !button.disabled && !button.closest("tr").hidden;
  const isShown = (button) => isFound(button) && !button.closest(".closed");
  const found = () => all.filter(isFound).map((button) => Number(button.dataset.cell)); // folded ones too
  const shown = () => all.filter(isShown);

  function setCurrent(button) {
    if (current) current.tabIndex = -1;
    current = button;
    if (current) current.tabIndex = 0;
  }

  function words(cell) {
    return [cell.id, cell.observed, cell.declared, cell.surprise, ...cell.reasons, ...cell.declaredReasons]
      .join(" ")
      .toLowerCase();
  }

  function fits(cell, wanted) {
    const verdicts = wanted.verdicts;
    if (verdicts.length && !verdicts.includes(cell.observed) && !(verdicts.includes("surprise") && cell.surprise)) {
      return false;
    }
    if (wanted.schedule && cell.schedule !== wanted.schedule) return false;
    const [kind, name] = [wanted.adapter.slice(0, 7), wanted.adapter.slice(wanted.adapter.indexOf(":") + 1)];
    if (wanted.adapter && !(kind === "family:" ? cell.families : cell.adapters).includes(name)) return false;
    return wanted.text.every((word) => words(cell).includes(word));
  }

  function filter() {
    const value = (name) => form.querySelector(`[data-filter=${name}]`)?.value ?? "";
    const wanted = {
      verdicts: [...form.querySelectorAll("[data-verdict][aria-pressed=true]")].map((chip) => chip.dataset.verdict),
      schedule: value("schedule"),
      adapter: value("adapter"),
      text: value("text").toLowerCase().split(/\s+/).filter(Boolean),
    };
    const fitting = new Set();
    for (const { row, buttons } of rows) {
      let some = false;
      for (const button of buttons) {
        if (!button) continue;
        const fit = fits(cellOf(button), wanted);
        button.disabled = !fit;
        if (fit) fitting.add(button.dataset.cell);
        some ||= fit;
      }
      row.hidden = !some;
    }
    for (const body of table.tBodies) body.hidden = ![...body.rows].some((row) => !row.classList.contains("group") && !row.hidden);
    const num = fitting.size;
    output.textContent = num === all.length ? `${num} cells` : `${num} of ${all.length} cells`;
    form.classList.toggle("active", num !== all.length);
    nothing.hidden = num > 0;
    for (const point of points) point.classList.toggle("off", !fitting.has(point.dataset.cell));
    fold();
  }

  // The next cell in a direction; gaps and filtered cells are stepped over.
  function neighbour(button, down, right) {
    const visible = rows.filter(({ row }) => !row.hidden);
    let at = visible.findIndex(({ buttons }) => buttons.includes(button));
    let column = visible[at].buttons.indexOf(button);
    for (;;) {
      at += down;
      column += right;
      if (!visible[at] || column < 0 || column >= visible[at].buttons.length) return null;
      if (isShown(visible[at].buttons[column])) return visible[at].buttons[column];
    }
  }

  function end(button, last, whole) {
    const among = whole ? shown() : shown().filter((one) => one.closest("tr") === button.closest("tr"));
    return among.at(last ? -1 : 0);
  }

  table.addEventListener("keydown", (event) => {
    const button = event.target.closest("button[data-cell]");
    if (!button || event.altKey || event.metaKey) return;
    const moves = {
      ArrowUp: () => neighbour(button, -1, 0),
      ArrowDown: () => neighbour(button, 1, 0),
      ArrowLeft: () => neighbour(button, 0, -1),
      ArrowRight: () => neighbour(button, 0, 1),
      Home: () => end(button, false, event.ctrlKey),
      End: () => end(button, true, event.ctrlKey),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    const next = moves[event.key]();
    if (!next) return;
    setCurrent(next);
    next.focus();
  });
  table.addEventListener("focusin", (event) => event.target.matches("button[data-cell]") && setCurrent(event.target));
  table.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-cell]");
    if (button) open(Number(button.dataset.cell), button, found());
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", filter);
  form.addEventListener("input", () => (table.parentElement.scrollTop = 0));
  form.addEventListener("reset", () => {
    form.querySelectorAll("[data-verdict]").forEach((chip) => chip.setAttribute("aria-pressed", "false"));
    setTimeout(filter); // after the fields are empty
  });
  nothing.querySelector("button").addEventListener("click", () => form.reset());
  for (const chip of form.querySelectorAll("[data-verdict]")) {
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
      filter();
    });
  }
  for (const one of folds) {
    one.button.addEventListener("click", () => {
      one.closed = !one.closed;
      fold();
    });
  }
  filter();
  return {
    found,
    button: (number) => all.find((one) => Number(one.dataset.cell) === number && isShown(one)) ?? null,
  };
}
