// The page: tabs of the pairs, their grids, and the dialog in which a cell is opened.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("data");
  for (const cell of data.cells) {
    for (const name of ["reasons", "declaredReasons"]) cell[name] = cell[name].map((place) => data.texts[place]);
    cell.expectation = data.texts[cell.expectation];
    const [stages, lanes] = data.timelines[cell.timeline];
    cell.timeline = { stages, lanes };
    cell.families = cell.adapters.map((name) => data.families[name]);
  }
  const media = read("media");
  const dialog = document.querySelector("dialog");
  const sheet = dialog.querySelector(".sheet");
  const sections = [...document.querySelectorAll("article.pair")];
  const grids = sections.map((section) => makeGrid(section, data.cells, open));
  let opened = null;

  function open(number, from, order) {
    opened?.stop();
    const { cell, parts, stop } = drawCell(data, media, number);
    const at = order.indexOf(number);
    const step = (by, label, sign) => {
      const button = make("button", { type: "button", class: "round", "aria-label": label }, sign);
      button.disabled = at < 0 || order[at + by] === undefined;
      button.addEventListener("click", () => open(order[at + by], from, order));
      return button;
    };
    const close = make("button", { type: "button", class: "round close", "aria-label": "Close" }, "✕");
    close.addEventListener("click", () => dialog.close());
    const steps = [step(-1, "Previous cell", "‹"), step(1, "Next cell", "›")];
    const title = make("h3", { id: "cell-title", tabindex: "-1" }, cell.id);
    sheet.replaceChildren(
      make(
        "header",
        {},
        make(
          "div",
          {},
          make("p", { class: "eyebrow" }, cell.pair),
          title,
          make(
            "p",
            { class: "verdict" },
            make("span", {}, `declared ${cell.declared || "nothing"}`),
            " → ",
            make("span", { class: `tag ${cell.observed}` }, `observed ${cell.observed}`),
            cell.surprise ? make("span", { class: "tag broken" }, ` · ${cell.surprise}`) : null,
          ),
        ),
        make("div", { class: "buttons" }, ...steps, close),
      ),
      ...parts,
    );
    opened = { stop, number, from };
    if (!dialog.open) dialog.showModal();
    sheet.scrollTop = 0;
    title.focus();
  }

  dialog.addEventListener("close", () => {
    opened.stop();
    sheet.replaceChildren();
    const place = grids.map((grid) => grid.button(opened.number)).find(Boolean);
    // Back to where it was opened, or after a walk through the cells to the last one.
    (opened.from.matches(".cell") && place ? place : opened.from).focus();
    opened = null;
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

  sections.forEach((section, at) => {
    section.addEventListener("click", (event) => {
      const found = event.target.closest("[data-cell]");
      if (!found || found.matches(".cell")) return;
      const back = found.matches("button") ? found : grids[at].button(Number(found.dataset.cell)) ?? document.body;
      open(Number(found.dataset.cell), back, grids[at].found());
    });
  });

  const tabs = [...document.querySelectorAll("[role=tab]")];
  function show(at) {
    sections.forEach((section, number) => (section.hidden = number !== at));
    tabs.forEach((tab, number) => {
      tab.setAttribute("aria-selected", String(number === at));
      tab.tabIndex = number === at ? 0 : -1;
    });
  }
  tabs.forEach((tab, at) => {
    tab.addEventListener("click", () => show(at));
    tab.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      const next = (at + by + tabs.length) % tabs.length;
      show(next);
      tabs[next].focus();
    });
  });
  if (tabs.length) show(0);

  if (media.leftOut.length) {
    const outside = document.querySelector(".outside");
    const whole = media.leftOut.length + Object.keys(media.index).length;
    outside.hidden = false;
    outside.querySelector(".intro").textContent =
      `${media.leftOut.length} of ${whole} videos and stills are not in this file, which is kept under ${outside.dataset.max} MB. ` +
      "The run wrote them beside matrix.json. First come those of the first prompt, and among them: either denoiser alone, the " +
      "schedules alone, what is broken or unexpected, the Pareto front, what passes, the rest; the faster first.";
    outside.querySelector("ul").append(...media.leftOut.map((name) => make("li", {}, make("code", {}, name))));
  }
})();
