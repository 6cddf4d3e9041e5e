"use strict";
// All videos show the same moment: one clock drives them, so none can drift from the others.
(() => {
  const videos = [...document.querySelectorAll("video")];
  const play = document.getElementById("play");
  const slow = document.getElementById("slow");
  const scrub = document.getElementById("scrub");
  if (!videos.length) return;

  let playing = false;
  let rate = 1;
  let moment = 0;
  let last = 0;
  const duration = () => Math.max(0.001, ...videos.map((v) => (Number.isFinite(v.duration) ? v.duration : 0)));

  function show() {
    for (const video of videos) {
      // While a seek is under way another one would only queue up.
      if (video.readyState > 0 && !video.seeking && Math.abs(video.currentTime - moment) > 0.04) {
        video.currentTime = Math.min(moment, video.duration - 0.001);
      }
    }
  }

  function tick(now) {
    if (!playing) return;
    moment = (moment + (rate * (now - last)) / 1000) % (duration() + 0.4 * rate);
    last = now;
    scrub.value = String(Math.round((1000 * Math.min(moment, duration())) / duration()));
    show();
    requestAnimationFrame(tick);
  }

  function setPlaying(on) {
    playing = on;
    play.textContent = on ? "Pause" : "Play";
    play.setAttribute("aria-pressed", String(on));
    last = performance.now();
    if (on) requestAnimationFrame(tick);
  }

  play.addEventListener("click", () => setPlaying(!playing));
  slow.addEventListener("click", () => {
    rate = rate === 1 ? 0.25 : 1;
    slow.setAttribute("aria-pressed", String(rate !== 1));
  });
  scrub.addEventListener("input", () => {
    setPlaying(false);
    moment = (duration() * Number(scrub.value)) / 1000;
    show();
  });
  for (const video of videos) video.addEventListener("seeked", () => { if (!playing) show(); });
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) setPlaying(true);
})();
