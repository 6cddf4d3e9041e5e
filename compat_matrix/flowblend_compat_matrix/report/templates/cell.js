// One cell, opened: everything is put in as text, never as markup.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const OUTCOMES = { c: "compute", r: "reuse", p: "predict", x: "other" };

function drawTimeline({ stages, lanes }) {
  const num = lanes[0][2].length;
  const grid = make("div", { class: "lanes", role: "img", style: `--steps:${num}` });
  grid.append(make("span", { class: "lane-name" }));
  for (const [stage, steps] of stages) {
    grid.append(make("span", { class: "stage", style: `grid-column:span ${steps}`, title: stage }, stage));
  }
  const said = [];
  for (const [denoiser, branch, letters] of lanes) {
    const counts = {};
    grid.append(make("span", { class: "lane-name" }, make("b", {}, denoiser), branch ? ` ${branch}` : ""));
    [...letters].forEach((letter, step) => {
      const outcome = OUTCOMES[letter];
      if (outcome) counts[outcome] = (counts[outcome] ?? 0) + 1;
      const what = outcome ? `step ${step + 1}: ${denoiser} ${branch} ${outcome}` : null;
      grid.append(make("i", { class: outcome ? `${denoiser === "S" ? "S" : "L"} ${outcome}` : "", title: what }));
    });
    said.push(`${denoiser} ${branch}: ${Object.entries(counts).map(([name, n]) => `${n} ${name}`).join(", ")}`);
  }
  grid.append(make("span", { class: "lane-name" }, "step"));
  for (let step = 1; step <= num; step += 1) {
    const isNamed = step === 1 || step === num || (step % 5 === 0 && num - step > 2);
    grid.append(make("span", { class: "step" }, isNamed ? String(step) : ""));
  }
  grid.setAttribute("aria-label", said.join("; "));
  return grid;
}

function drawNumbers(labels, cell, pair) {
  const pairOf = ([value, spread]) => [value, spread ? ` (${spread})` : null];
  const body = make("tbody");
  labels.forEach((label, at) => {
    const columns = [cell.numbers[at], pair.largeNumbers[at], pair.smallNumbers[at]];
    if (columns.every(([value]) => value === "–")) return;
    body.append(
      make("tr", {}, make("th", { scope: "row" }, label), ...columns.map((number) => make("td", {}, ...pairOf(number)))),
    );
  });
  const heads = ["", "this cell", "large only", "small only"].map((text) => make("th", { scope: "col" }, text));
  return make("table", { class: "numbers" }, make("thead", {}, make("tr", {}, ...heads)), body);
}

// Videos side by side with one player: shown = [{title, caption, files}]; a file that is not in the page is said to be
// outside, with the command that makes it.
function drawVideos(data, media, pair, shown, holder, prompt) {
  const figures = make("div", { class: "videos", style: `--columns:${shown.length}` });
  const videos = [];
  for (const { title, caption, files } of shown) {
    const name = files[prompt];
    const place = media.index[name];
    const what = `${title}: ${pair.prompts[prompt]}`;
    const figure = make("figure");
    if (place !== undefined) {
      const [type, content] = media.contents[place];
      const url = `data:${type};base64,${content}`;
      if (type.startsWith("video/")) {
        const video = make("video", { src: url, playsinline: "", preload: "auto", "aria-label": what });
        video.muted = true;
        videos.push(video);
        figure.append(video);
      } else {
        figure.append(make("img", { src: url, alt: what }));
      }
    } else {
      const why = name ? `${name} is not in this file. It is made by: ${data.command}` : "None was made.";
      figure.append(make("p", { class: "outside-note" }, why));
    }
    figure.append(make("figcaption", {}, make("b", {}, title), caption ? ` ${caption}` : ""));
    figures.append(figure);
  }
  holder.replaceChildren(figures);
  if (!videos.length) return null;
  const play = make("button", { type: "button", class: "play" }, "Play");
  const scrub = make("input", { type: "range", "aria-label": "Frame", min: "0", max: "1", value: "0", step: "1" });
  const slow = make("button", { type: "button", class: "slow", "aria-pressed": "false" }, "Slow");
  holder.append(make("div", { class: "player", role: "group", "aria-label": "All videos" }, play, scrub, slow));
  return makePlayer(videos, pair.fps, play, scrub, slow);
}

// A word for a shell, quoted where it needs to be; double quotes hold for all shells where the text has none of $`\"!.
function quoted(text) {
  if (/^[\w@%+=:,./-]+$/.test(text)) return text;
  return /[$`\\"!]/.test(text) ? `'${text.replaceAll("'", `'"'"'`)}'` : `"${text}"`;
}

function commandOf(pair, cell) {
  const stack = cell.adapters.map((text) => ` --adapter ${quoted(text)}`).join("");
  return `${pair.command} --schedule ${quoted(cell.schedule)}${stack} --compare`;
}

function drawCell(data, media, number) {
  const cell = data.cells[number];
  const pair = data.pairs[cell.pair];
  const parts = [];
  let player = null;

  const reasons = (title, texts) =>
    texts.length ? make("div", {}, make("h3", {}, title), make("ul", {}, ...texts.map((text) => make("li", {}, text)))) : null;
  parts.push(
    make(
      "div",
      { class: "reasons" },
      reasons(`Observed: ${cell.observed}`, cell.reasons),
      reasons(`Declared: ${cell.declared || "nothing"}`, cell.declaredReasons),
      reasons(cell.surprise ? "An expectation foresaw otherwise" : "Foreseen", cell.expectation ? [cell.expectation] : []),
      cell.surprise && !cell.expectation ? make("p", { class: "tag broken" }, "Declared and observed disagree, and no expectation says why.") : null,
    ),
  );
  if (cell.error) {
    parts.push(make("details", {}, make("summary", {}, "Where it raised"), make("pre", { tabindex: "0" }, cell.error)));
  }

  parts.push(make("p", {}, "To make one: ", make("code", {}, commandOf(pair, cell))));
  const numShown = cell.videos.length;
  if (numShown) {
    const holder = make("div");
    const caption = make("p");
    const chooser = make("div", { class: "chooser", role: "group", "aria-label": "Prompt" });
    const shown = [["large only", pair.large], ["this cell", cell.videos], ["small only", pair.small]];
    const show = (prompt) => {
      player?.stop();
      player = drawVideos(data, media, pair, shown.map(([title, files]) => ({ title, files })), holder, prompt);
      caption.textContent = pair.prompts[prompt];
      [...chooser.children].forEach((button, at) => button.setAttribute("aria-pressed", String(at === prompt)));
    };
    for (let at = 0; at < numShown && numShown > 1; at += 1) {
      const button = make("button", { type: "button", "aria-label": pair.prompts[at] }, String(at + 1));
      button.addEventListener("click", () => show(at));
      chooser.append(button);
    }
    show(0);
    parts.push(make("section", {}, make("h3", {}, "Same words, same noise"), chooser, caption, holder));
  }
  if (cell.timeline.lanes.length) {
    const key = ["compute", "reuse", "predict"].map((name) => make("span", {}, make("i", { class: `L ${name}` }), name));
    parts.push(
      make(
        "section",
        {},
        make("div", { class: "bar" }, make("h3", {}, "Who answered when"), make("div", { class: "lane-key" }, ...key)),
        drawTimeline(cell.timeline),
        cell.stages ? make("p", { class: "note" }, cell.stages) : null,
      ),
    );
  }
  if (cell.numbers.length) {
    parts.push(
      make(
        "section",
        {},
        make("h3", {}, "Numbers"),
        make("div", { class: "scroll" }, drawNumbers(data.numbers, cell, pair)),
        make("p", { class: "note" }, "Ranges are over the timed rounds, ± over the prompts. FLOPs are of large-only’s, which stand as a count."),
      ),
    );
  }
  return { cell, parts, stop: () => player?.stop() };
}
