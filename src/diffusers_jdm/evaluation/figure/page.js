"use strict";
const button = document.getElementById("pause");
const rows = [...document.querySelectorAll(".videos")];
const videosOf = (row) => [...row.querySelectorAll("video")];
const isShown = (row) => videosOf(row)[0].hasAttribute("src");
let paused = matchMedia("(prefers-reduced-motion: reduce)").matches;

function source(video) {
  const text = document.getElementById(video.dataset.source).textContent;
  return URL.createObjectURL(new Blob([Uint8Array.from(atob(text), (char) => char.charCodeAt(0))], { type: "video/mp4" }));
}

/* A row's videos are equally long: started together, they stay together; the first one's end starts all of them again. */
function restart(row) {
  videosOf(row).forEach((video) => { video.currentTime = 0; });
  if (!paused) play(row);
}

function play(row) {
  videosOf(row).forEach((video) => video.play().catch(() => {}));
}

/* Only rows near the window hold videos: browsers play some dozens at a time, and the page may have hundreds. */
function show(row) {
  if (isShown(row)) return;
  const ready = videosOf(row).map((video) => new Promise((resolve) => {
    video.addEventListener("loadeddata", resolve, { once: true });
    video.src = source(video);
  }));
  Promise.all(ready).then(() => restart(row));
}

function hide(row) {
  if (!isShown(row)) return;
  videosOf(row).forEach((video) => {
    URL.revokeObjectURL(video.src);
    video.removeAttribute("src");
    video.load();
  });
}

function setPaused(value) {
  paused = value;
  button.setAttribute("aria-pressed", String(paused));
  rows.filter(isShown).forEach((row) => (paused ? videosOf(row).forEach((video) => video.pause()) : play(row)));
}

const seen = new IntersectionObserver(
  (entries) => entries.forEach((entry) => (entry.isIntersecting ? show : hide)(entry.target)), { rootMargin: "300px" });
for (const row of rows) {
  videosOf(row)[0].addEventListener("ended", () => restart(row));
  seen.observe(row);
}
button.addEventListener("click", () => setPaused(!paused));
document.addEventListener("keydown", (event) => {
  if (event.key !== " " || event.target === button) return;
  event.preventDefault();
  setPaused(!paused);
});
setPaused(paused);
