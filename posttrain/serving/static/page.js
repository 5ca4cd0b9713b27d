// The page on which people compare two answers. What a model has said reaches the page as text nodes only, never as
// HTML; which model stands where is not known here before the vote.
"use strict";

const $ = (id) => document.getElementById(id);
const SIDES = ["left", "right"];
const KEYS = { 1: "left", 2: "right", 3: "tie", 4: "both_bad" };
const SAID = { left: "Left is better", right: "Right is better", tie: "A tie", both_bad: "Both bad" };

let writing = null; // AbortController of the answers that are being written
let match = null; // the name to vote under, once both have ended
let voting = false;
let file = ""; // that the votes go to

// ---------------------------------------------------------------- the server

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(path, body, signal) {
  const key = sessionStorage.getItem("key");
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  const request = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    request.method = "POST";
    request.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(path, request);
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Refused(0, "the server cannot be reached");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null);
  if (answer.status === 401) askForKey(key === null ? "" : "not this one");
  throw new Refused(answer.status, said?.error?.message ?? `status ${answer.status}`);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const event of whole) yield JSON.parse(event.slice("data: ".length));
  }
}

function askForKey(said) {
  $("door").hidden = false;
  $("ask").hidden = true;
  $("door-said").textContent = said;
  $("key").focus();
}

$("door").addEventListener("submit", async (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value.trim());
  await look();
});

// ---------------------------------------------------------------- who is there, and how it stands

async function look() {
  let arena;
  try {
    arena = await (await call("arena")).json();
  } catch (problem) {
    if (problem.status !== 401) say(problem);
    return;
  }
  $("door").hidden = true;
  $("ask").hidden = false;
  $("key").value = "";
  $("longest").placeholder = arena.max_new_tokens;
  offer(arena.models);
  show(arena);
  $("question").focus();
}

function offer(models) {
  const pairs = models.flatMap((one, i) => models.slice(i + 1).map((other) => [one, other]));
  const options = pairs.map((pair) => new Option(pair.join(" and "), JSON.stringify(pair)));
  if (pairs.length > 1) options.unshift(new Option("any two models", "null"));
  options.push(...models.map((one) => new Option(`two samples of ${one}`, JSON.stringify([one, one]))));
  $("pair").replaceChildren(...options);
}

function show({ standing, votes, pairs }) {
  $("standing").hidden = standing.length === 0;
  $("rows").replaceChildren(...standing.map(row));
  file = votes ?? file;
  const command = document.createElement("code");
  command.textContent = `python -m loops.dpo --data.name ${file}`;
  const count = pairs === 1 ? "1 pair" : `${pairs} pairs`;
  $("file").replaceChildren(`${count} to train on so far: `, command);
}

function row(of) {
  const line = document.createElement("tr");
  const same = of.model === of.against;
  const rate = of.win_rate === null ? "–" : `${of.win_rate.toFixed(2)} [${of.low.toFixed(2)}, ${of.high.toFixed(2)}]`;
  const counts = same ? `${of.votes}` : `${of.votes}: ${of.won} won, ${of.lost} lost, ${of.ties} tied, ${of.both_bad} both bad`;
  for (const [text, kind] of [[of.model, "name"], [same ? "itself" : of.against, "name"], [rate], [null, "picture"], [counts]]) {
    const cell = document.createElement("td");
    if (kind) cell.className = kind;
    if (text === null) cell.append(...(of.win_rate === null ? [] : [picture(of)]));
    else cell.textContent = text;
    line.append(cell);
  }
  return line;
}

function picture({ win_rate: rate, low, high }) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 160 16");
  svg.setAttribute("aria-hidden", "true");
  const x = (share) => 5 + 150 * share;
  const draw = (name, kind, places) => {
    const shape = document.createElementNS(svg.namespaceURI, name);
    shape.setAttribute("class", kind);
    for (const [key, value] of Object.entries(places)) shape.setAttribute(key, value);
    svg.append(shape);
  };
  draw("line", "axis", { x1: x(0), x2: x(1), y1: 8, y2: 8 });
  draw("line", "half", { x1: x(0.5), x2: x(0.5), y1: 1, y2: 15 });
  draw("line", "interval", { x1: x(low), x2: x(high), y1: 8, y2: 8 });
  draw("circle", "rate", { cx: x(rate), cy: 8, r: 5 });
  return svg;
}

// ---------------------------------------------------------------- asking

async function ask() {
  const prompt = $("question").value;
  if (writing !== null || voting || !$("ask").reportValidity() || prompt.trim() === "") return;
  const body = { prompt, models: JSON.parse($("pair").value || "null"), temperature: $("temperature").valueAsNumber };
  if (Number.isNaN(body.temperature)) delete body.temperature;
  if ($("longest").value !== "") body.max_new_tokens = $("longest").valueAsNumber;
  begin(prompt);
  try {
    const answer = await call("arena/match", body, writing.signal);
    for await (const event of events(answer)) {
      if (event.error) throw new Refused(500, event.error.message);
      if (event.match) end(event);
      else for (const side of SIDES) $(`${side}-text`).firstChild.appendData(event[side]);
    }
    if (match === null) throw new Refused(0, "the connection broke before both answers had ended");
  } catch (problem) {
    say(problem.name === "AbortError" ? new Error("stopped: there is nothing to vote on. Ask again") : problem);
    if (SIDES.every((side) => $(`${side}-text`).textContent === "")) {
      $("match").hidden = true;
      $("question").focus();
    }
  } finally {
    writing = null;
    busy(false);
  }
}

function begin(prompt) {
  writing = new AbortController();
  match = null;
  say(null);
  $("asked").textContent = prompt;
  $("said").textContent = "";
  for (const side of SIDES) {
    $(side).classList.remove("won");
    $(`${side}-name`).textContent = side === "left" ? "Left" : "Right";
    $(`${side}-text`).replaceChildren(document.createTextNode(""));
    $(`${side}-note`).textContent = "";
  }
  $("match").hidden = false;
  busy(true);
  $("match").focus({ preventScroll: true });
  $("asked").scrollIntoView({ block: "nearest" });
}

function end({ match: name, ended }) {
  match = name;
  for (const side of SIDES) {
    const notes = [];
    if ($(`${side}-text`).textContent === "") notes.push("It says nothing.");
    if (ended[side] === "length") notes.push("Cut off: it would have gone on.");
    $(`${side}-note`).textContent = notes.join(" ");
  }
  $("said").textContent = "Both answers have ended: which is better?";
}

function busy(on) {
  for (const side of SIDES) $(side).setAttribute("aria-busy", String(on));
  $("go").textContent = on ? "Stop" : "Ask";
  canVote();
}

function canVote() {
  for (const button of document.querySelectorAll("[data-vote]")) button.disabled = match === null || voting;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (writing !== null) writing.abort();
  else ask();
});

// ---------------------------------------------------------------- voting

async function vote(said, byKey) {
  if (match === null || voting) return;
  voting = true;
  canVote();
  say(null);
  try {
    reveal(said, await (await call("arena/vote", { match, vote: said })).json());
    match = null;
  } catch (problem) {
    if (problem.status === 404 || problem.status === 409) match = null;
    say(problem); // else it can be sent once more: the server counts it once
  } finally {
    voting = false;
    canVote();
  }
  if (match !== null) return;
  $(byKey ? "question" : "match").focus({ preventScroll: true }); // on a phone the keyboard would hide who it was
  if (byKey) $("question").select();
}

function reveal(said, told) {
  for (const side of SIDES) {
    const { model, reward } = told[side];
    $(`${side}-name`).textContent = `${side === "left" ? "Left" : "Right"}: ${model}`;
    if (reward !== null) $(`${side}-note`).textContent += ` Reward ${+reward.toPrecision(4)}`;
  }
  if (told.better !== null) $(told.better).classList.add("won");
  const apart = ["tie", "both_bad"].includes(said) || told.apart === null ? "" : ` Counted, but no pair to train on: ${told.apart}.`;
  $("said").textContent = `${SAID[said]}. Left was ${told.left.model}, right was ${told.right.model}.${apart}`;
  show(told);
}

for (const button of document.querySelectorAll("[data-vote]")) {
  button.addEventListener("click", () => vote(button.dataset.vote, false));
}

// ---------------------------------------------------------------- keys

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    ask();
  } else if (event.key === "Escape" && writing !== null) {
    writing.abort();
  } else if (!(event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.matches("input, textarea, select"))) {
    if (KEYS[event.key]) vote(KEYS[event.key], true);
  }
});

function say(problem) {
  $("problem").textContent = problem === null ? "" : `${problem.message}.`;
}

canVote();
look();
