"use strict";
const $ = (id) => document.getElementById(id);
const study = JSON.parse($("study").textContent);
const QUESTIONS = ["alignment", "quality"];
const CHOICES = ["left", "right", "undecided"];
const STORE = `diffusers-jdm-preference-${study.page}`; // a browser has one store for all pages that are files
const videos = [$("left"), $("right")];
const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;

let state = load(); // what a reload must not lose
let asked = 0; // the question that 1, 2 and 3 answer
let paused = isCalm;
let urls = [];

function newVoter() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return { id: Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(""), name: "" };
}

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE));
    if (kept && kept.voter.id && kept.votes && study.pairs[kept.at]) return kept;
  } catch { /* no store, or nothing of ours in it */ }
  return { voter: newVoter(), at: 0, votes: {} };
}

function save() {
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch {
    $("lost").hidden = false;
  }
}

const voteOn = (pair) => state.votes[pair.id] ?? {};
const isAnswered = (pair) => QUESTIONS.every((question) => voteOn(pair)[question]);
const countAnswered = () => study.pairs.filter(isAnswered).length;

/* Videos: of the pair that is shown only, for the page may hold hundreds. */

function source(side) {
  const bytes = Uint8Array.from(atob($(`${side}-${state.at}`).textContent), (char) => char.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
}

function loadVideos() {
  urls.forEach((url) => URL.revokeObjectURL(url));
  urls = videos.map((video) => source(video.id));
  $("broken").hidden = true;
  videos.forEach((video, k) => { video.src = urls[k]; });
}

function replay() {
  videos.forEach((video) => { video.currentTime = 0; });
  if (!paused) videos.forEach((video) => video.play().catch(() => {}));
}

function setPaused(value) {
  paused = value;
  $("pause").setAttribute("aria-pressed", paused);
  videos.forEach((video) => {
    if (paused) video.pause();
    else if (!video.ended) video.play().catch(() => {});
  });
}

videos.forEach((video) => {
  // Kept while the next pair is loaded, so that the questions stay where they are.
  video.addEventListener("loadedmetadata", () => { video.style.aspectRatio = video.videoWidth / video.videoHeight; });
  // Both start together, in each round: one loop apiece would drift.
  video.addEventListener("loadeddata", () => { if (videos.every((each) => each.readyState >= 2)) replay(); });
  video.addEventListener("ended", () => { if (videos.every((each) => each.ended)) replay(); });
  video.addEventListener("error", () => { $("broken").hidden = false; });
});

/* Questions and pairs */

function showPair() {
  const pair = study.pairs[state.at];
  $("prompt").textContent = pair.prompt;
  asked = voteOn(pair).alignment && !voteOn(pair).quality ? 1 : 0;
  loadVideos();
  showVotes();
}

function showVotes() {
  const [total, done, vote] = [study.pairs.length, countAnswered(), voteOn(study.pairs[state.at])];
  QUESTIONS.forEach((question, k) => {
    $(question).classList.toggle("asked", k === asked);
    for (const button of $(question).querySelectorAll("button")) {
      button.setAttribute("aria-pressed", button.dataset.choice === vote[question]);
    }
  });
  $("place").textContent = `Pair ${state.at + 1} of ${total}, ${done} answered`;
  $("progress").max = total;
  $("progress").value = done;
  $("back").disabled = state.at === 0;
  $("next").disabled = state.at === total - 1;
  $("open").disabled = done === total;
  $("name").value = state.voter.name;
  $("pause").setAttribute("aria-pressed", paused);
  $("done").textContent = done === total
    ? `All ${total} pairs are answered: please download your votes, and send the file to whoever gave you this page.` : "";
}

function choose(question, choice) {
  const pair = study.pairs[state.at];
  state.votes[pair.id] = { ...voteOn(pair), [question]: choice, time: new Date().toISOString() };
  asked = QUESTIONS.indexOf(question);
  if (asked === 0 && !voteOn(pair).quality) asked = 1;
  save();
  showVotes();
}

function goTo(at) {
  if (at === state.at || !study.pairs[at]) return;
  state.at = at;
  save();
  showPair();
}

function goToOpen() {
  const total = study.pairs.length;
  for (let step = 1; step <= total; step++) {
    const at = (state.at + step) % total;
    if (!isAnswered(study.pairs[at])) return goTo(at);
  }
}

function download() {
  const { page, format, version, diffusers_jdm } = study;
  const votes = study.pairs.map(({ id }) => ({ pair: id, alignment: null, quality: null, time: null, ...state.votes[id] }));
  const saved = new Date().toISOString();
  const content = { format, version, diffusers_jdm, page, voter: state.voter, saved, browser: navigator.userAgent, votes };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  link.download = `votes-${page.slice(0, 8)}-${state.voter.id.slice(0, 8)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function restart() {
  if (!confirm("This deletes the votes in this browser. Has this voter downloaded them?")) return;
  state = { voter: newVoter(), at: 0, votes: {} };
  save();
  showPair();
}

const ACTIONS = {
  download, restart,
  replay: () => { setPaused(false); replay(); },
  pause: () => setPaused(!paused),
  back: () => goTo(state.at - 1),
  next: () => goTo(state.at + 1),
  open: goToOpen,
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (event.detail > 0) button.blur(); // a mouse: or space would press the button again and replay nothing
  const question = button.closest("fieldset");
  if (question) choose(question.id, button.dataset.choice);
  else ACTIONS[button.id]();
});

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && event.target.closest?.("button")) return; // reached by Tab: space presses it
  const keys = {
    " ": ACTIONS.replay,
    p: ACTIONS.pause,
    ArrowLeft: ACTIONS.back,
    ArrowRight: ACTIONS.next,
    ArrowUp: () => { asked = 0; showVotes(); },
    ArrowDown: () => { asked = 1; showVotes(); },
  };
  CHOICES.forEach((choice, k) => { keys[k + 1] = () => choose(QUESTIONS[asked], choice); });
  if (!Object.hasOwn(keys, event.key)) return;
  event.preventDefault();
  if (!event.repeat || event.key.startsWith("Arrow")) keys[event.key](); // a key held down must not answer both questions
});

$("name").addEventListener("input", () => { state.voter.name = $("name").value.trim(); save(); });
addEventListener("storage", (event) => { // the page in another tab
  if (event.key === STORE) { state = load(); showPair(); }
});

save();
showPair();
