// The page: pairs, and the dialog in which a cell is opened. All that a reader chose stands in the URL behind the #.
const DEFAULTS = { pair: "", cell: "", sort: "speed.down", psnr: "", speed: "", front: "", verdict: "", q: "" };

(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("data");
  const media = read("media");
  data.cells.forEach((cell, number) => {
    cell.number = number;
    for (const name of ["reasons", "declaredReasons"]) cell[name] = cell[name].map((place) => data.texts[place]);
    cell.expectation = data.texts[cell.expectation];
    const [stages, lanes] = data.timelines[cell.timeline];
    cell.timeline = { stages, lanes };
    cell.words = [cell.id, cell.declared, cell.surprise, ...cell.reasons, ...cell.declaredReasons].join(" ").toLowerCase();
  });
  const dialog = document.querySelector("dialog");
  const sheet = dialog.querySelector(".sheet");
  const names = [...document.querySelectorAll("article.pair")].map((section) => section.dataset.pair);
  const parts = new Map();
  const tabs = [...document.querySelectorAll("[role=tab]")];
  let state = { ...DEFAULTS };
  let opened = null;

  function fromUrl() {
    const asked = new URLSearchParams(location.hash.slice(1));
    state = Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, asked.get(name) ?? value]));
    for (const name of ["psnr", "speed"]) if (!Number.isFinite(Number(state[name]))) state[name] = "";
    if (!names.includes(state.pair)) state.pair = names[0];
    if (!/^[a-z]+\.(up|down)$/.test(state.sort) || !COLUMNS.some(([key]) => key === state.sort.split(".")[0])) state.sort = DEFAULTS.sort;
  }

  function setState(changes) {
    state = { ...state, ...changes };
    const told = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name] && !(name === "pair" && value === names[0]));
    history.replaceState(null, "", `#${new URLSearchParams(told)}`);
    show();
  }

  const openCell = (number) => setState({ cell: data.cells[number].id });

  function partOf(name) {
    if (!parts.has(name)) {
      const section = [...document.querySelectorAll("article.pair")].find((one) => one.dataset.pair === name);
      const pair = data.pairs[name];
      const cells = data.cells.filter((cell) => cell.pair === name);
      drawVideos(data, media, pair, pair.first, section.querySelector(".show"), 0);
      const best = cells.find((cell) => cell.id === pair.first[1]?.title);
      if (best) section.querySelector(".type").append("To make one: ", make("code", {}, commandOf(pair, best)));
      if (pair.divergence.length) drawDivergence(section.querySelector(".charts"), pair);
      parts.set(name, { section, cells, table: makeTable(data, section, pair, cells, setState, openCell) });
    }
    return parts.get(name);
  }

  function show() {
    for (const section of document.querySelectorAll("article.pair")) section.hidden = section.dataset.pair !== state.pair;
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab.dataset.pair === state.pair));
      tab.tabIndex = tab.dataset.pair === state.pair ? 0 : -1;
    }
    const { cells, table } = partOf(state.pair);
    table.apply(state);
    const cell = cells.find((one) => one.id === state.cell);
    if (cell?.number !== opened?.number) {
      if (cell) openDialog(cell.number, table.order());
      else dialog.close();
    }
  }

  function openDialog(number, order) {
    const from = opened?.from ?? document.activeElement;
    opened?.stop();
    if (!dialog.open) dialog.showModal();
    const { cell, parts: drawn, stop } = drawCell(data, media, number);
    const at = order.indexOf(number);
    const step = (by, label, sign) => {
      const button = make("button", { type: "button", "aria-label": label }, sign);
      button.disabled = at < 0 || order[at + by] === undefined;
      button.addEventListener("click", () => openCell(order[at + by]));
      return button;
    };
    const close = make("button", { type: "button", class: "close", "aria-label": "Close" }, "✕");
    close.addEventListener("click", () => dialog.close());
    const title = make("h2", { id: "cell-title", tabindex: "-1" }, cell.id);
    const verdict = make("p", {}, `declared ${cell.declared || "nothing"}, `, make("b", { class: cell.observed }, `observed ${cell.observed}`), cell.surprise ? `, ${cell.surprise}` : "");
    const buttons = make("div", { class: "buttons" }, step(-1, "Previous cell", "‹"), step(1, "Next cell", "›"), close);
    sheet.replaceChildren(make("header", {}, title, buttons), verdict, ...drawn);
    opened = { stop, number, from };
    sheet.scrollTop = 0;
    title.focus();
  }

  dialog.addEventListener("close", () => {
    const { stop, number, from } = opened;
    stop();
    opened = null;
    sheet.replaceChildren();
    if (state.cell) setState({ cell: "" });
    (document.querySelector(`article:not([hidden]) button[data-cell="${number}"]`) ?? from).focus();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  tabs.forEach((tab, at) => {
    tab.addEventListener("click", () => setState({ ...DEFAULTS, pair: tab.dataset.pair }));
    tab.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      const next = tabs[(at + by + tabs.length) % tabs.length];
      next.click();
      next.focus();
    });
  });
  window.addEventListener("hashchange", () => {
    fromUrl();
    show();
  });
  window.addEventListener("resize", () => parts.get(state.pair).table.apply(state));

  if (media.leftOut.length) {
    const outside = document.querySelector(".outside");
    const whole = media.leftOut.length + Object.keys(media.index).length;
    outside.hidden = false;
    outside.querySelector("p").textContent =
      `${media.leftOut.length} of ${whole} videos and stills are not in this file, which is kept under ${outside.dataset.max} MB. ` +
      "They are written beside matrix.json by the command below.";
    outside.querySelector("ul").append(...media.leftOut.map((name) => make("li", {}, make("code", {}, name))));
  }
  if (names.length) {
    fromUrl();
    show();
  }
})();
