"use strict";
// Videos that play in step: they start together once every one of them stands at the same frame, run on the browser's
// clock (a slow machine drops frames but does not drift), and wait for each other at the end.
function makePlayer(videos, fps, play, scrub, slow) {
  const restMs = 500; // on the last frame, before the first comes again
  let playing = false;
  let starts = 0; // a start that was overtaken by a later click gives up
  let seeking = null;
  let wanted = 0;

  const numFrames = () => Math.max(1, ...videos.map((v) => (v.duration > 0 ? Math.round(v.duration * fps) : 0)));
  const once = (video, event) => new Promise((done) => video.addEventListener(event, done, { once: true }));

  async function seekOne(video, time) {
    if (video.readyState === 0) await once(video, "loadedmetadata");
    const target = Math.min(time, Math.max(0, video.duration - 0.01));
    if (Math.abs(video.currentTime - target) < 0.001) return;
    const done = once(video, "seeked");
    video.currentTime = target;
    await done;
  }

  // While one seek is under way, only the newest wish is kept.
  async function seekAll(time) {
    wanted = time;
    while (seeking) await seeking;
    if (time !== wanted) return;
    seeking = Promise.all(videos.map((video) => seekOne(video, time)));
    await seeking;
    seeking = null;
  }

  async function start(time) {
    const own = ++starts;
    videos.forEach((video) => video.pause());
    await seekAll(time);
    if (!playing || own !== starts) return;
    for (const video of videos) {
      video.playbackRate = slow.getAttribute("aria-pressed") === "true" ? 0.25 : 1;
      video.play().catch(() => own === starts && setPlaying(false));
    }
  }

  function showPosition() {
    scrub.max = String(numFrames() - 1);
    scrub.value = String(Math.floor(videos[0].currentTime * fps + 0.01));
    if (playing) requestAnimationFrame(showPosition);
  }

  function setPlaying(on) {
    playing = on;
    play.textContent = on ? "Pause" : "Play";
    if (!on) {
      starts += 1;
      videos.forEach((video) => video.pause());
      return;
    }
    const ended = videos.every((video) => video.ended);
    start(ended ? 0 : videos[0].currentTime);
    requestAnimationFrame(showPosition);
  }

  for (const video of videos) {
    video.addEventListener("ended", () => {
      if (!playing || !videos.every((one) => one.ended)) return;
      const own = starts;
      setTimeout(() => playing && own === starts && start(0), restMs);
    });
  }
  play.addEventListener("click", () => setPlaying(!playing));
  slow.addEventListener("click", () => {
    slow.setAttribute("aria-pressed", String(slow.getAttribute("aria-pressed") !== "true"));
    if (playing) start(videos[0].currentTime);
  });
  scrub.addEventListener("input", () => {
    setPlaying(false);
    scrub.max = String(numFrames() - 1);
    seekAll((Number(scrub.value) + 0.5) / fps); // the middle of the frame, so that no rounding shows its neighbour
  });
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) setPlaying(true);
  return { stop: () => setPlaying(false) };
}
