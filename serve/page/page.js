// The page of a Whyrank server. Whatever comes from a document is set as text, never as markup.
"use strict";

const EXPLAINED = 5;
const form = document.getElementById("form");
const query = document.getElementById("query");
const documents = document.getElementById("documents");
const search = document.getElementById("search");
const key = document.getElementById("key");
const status = document.getElementById("status");
const list = document.getElementById("results");
const legend = document.getElementById("legend");
const template = document.getElementById("result");

let asked = null; // the request whose results are shown
let items = new Map(); // position in the first stage's list -> its element
let shown = new Map(); // the same -> title and text of the document

key.value = sessionStorage.getItem("whyrank-key") || "";

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  sessionStorage.setItem("whyrank-key", key.value);
  const texts = documents.value.split("\n").map((line) => line.trim()).filter(Boolean);
  asked = search.checked ? { query: query.value } : { query: query.value, documents: texts };
  list.replaceChildren();
  items = new Map();
  shown = new Map();
  legend.hidden = true;
  say("Ranking …");
  document.getElementById("rank").disabled = true;
  try {
    const body = { ...asked, explain: { text: true, top_k: EXPLAINED } };
    await stream("v1/explain", body, { ranking: showRanking, attributions: showWords, draft: showDraft,
                                       explanation: showText, done: showEnd });
  } catch (error) {
    say(error.message, true);
  } finally {
    document.getElementById("rank").disabled = false;
  }
});

key.addEventListener("change", offerSearch);
search.addEventListener("change", showSource);
offerSearch();

// Offers to search where a corpus is served; a server that asks for keys says so to whoever brings one.
async function offerSearch() {
  const isServed = await servesCorpus();
  document.getElementById("source").hidden = !isServed;
  if (!isServed) search.checked = false; // a browser may have kept it from another server or key
  showSource();
}

async function servesCorpus() {
  try {
    const answer = await fetch("v1/models", { headers: withKey({}) });
    return answer.ok && (await answer.json()).data.some((model) => model.has_corpus);
  } catch {
    return false; // who ranks next is told why nobody answers
  }
}

function showSource() {
  document.getElementById("list").hidden = search.checked;
  documents.required = !search.checked;
}

function withKey(headers) {
  return key.value ? { ...headers, Authorization: `Bearer ${key.value}` } : headers;
}

document.getElementById("sample").addEventListener("click", async () => {
  const sample = await (await fetch("page/sample.json")).json();
  query.value = sample.query;
  documents.value = sample.documents.join("\n");
  search.checked = false;
  showSource();
  query.focus();
});

function say(text, failed = false) {
  status.textContent = text;
  status.classList.toggle("failed", failed);
}

// Sends a request, and hands every event of the answer to its handler.
async function stream(path, body, handlers) {
  const headers = withKey({ "Content-Type": "application/json", Accept: "text/event-stream" });
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(await refusal(answer));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The answer broke off; ask again.");
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const [name, data] = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const told = JSON.parse(data.slice("data: ".length));
      if (name === "event: error") throw new Error(`${told.error.message}; ${told.error.remedy}`);
      const kind = name.slice("event: ".length);
      if (handlers[kind]) handlers[kind](told);
      if (kind === "done") return;
    }
  }
}

async function refusal(answer) {
  if (answer.status === 401) document.getElementById("access").open = true;
  try {
    const { error } = await answer.json();
    return `${error.message}; ${error.remedy}`;
  } catch {
    return `The server answered with ${answer.status}.`;
  }
}

function showRanking(told) {
  told.results.forEach((result, place) => {
    const item = template.content.firstElementChild.cloneNode(true);
    const before = result.index + 1;
    const after = place + 1;
    item.querySelector(".rank").textContent = `${after}.`;
    const change = item.querySelector(".change");
    const moved = before - after;
    change.textContent = moved > 0 ? `▲ ${moved} (was ${before})` : moved < 0 ? `▼ ${-moved} (was ${before})` : "= same";
    change.classList.add(moved > 0 ? "up" : moved < 0 ? "down" : "same");
    item.querySelector(".score").textContent = result.relevance_score.toFixed(3);
    item.querySelector(".score").title = `score, as ${told.meta.scale}`;
    const { title = "", text } = result.document || { text: asked.documents[result.index] };
    shown.set(result.index, { title, text });
    paint(item.querySelector(".text"), shown.get(result.index), []);
    item.setAttribute("aria-label", `Rank ${after}, was ${before}`);
    const above = item.querySelector(".above");
    above.hidden = after === told.results.length;
    above.addEventListener("click", () => showContrast(item, result.index, place));
    const decides = item.querySelector(".decides");
    decides.hidden = above.hidden; // the last one cannot stand lower
    decides.addEventListener("click", () => showRankFlip(item, result.index, place));
    items.set(result.index, item);
    list.append(item);
  });
  say(`${told.results.length} documents ranked. Finding the words that caused the scores …`);
}

function showWords(told) {
  legend.hidden = items.size === 0;
  for (const [index, explanation] of Object.entries(told.explanations)) {
    const item = items.get(Number(index));
    if (!item || !explanation.attribution) continue;
    const found = explanation.attribution;
    paint(item.querySelector(".text"), shown.get(Number(index)), found.units);
    const note = item.querySelector(".note");
    note.hidden = false;
    const error = found.error === undefined ? "" : `, error about ${found.error.toFixed(2)}`;
    note.textContent = `${found.is_refined ? "Refined" : "First"} values from ${found.num_evals} evaluations${error}`;
  }
  say(told.is_refined ? "Writing explanations …" : "Refining the values …");
}

// Lays values over a document: each word's share of the largest one is how strongly it is marked.
function paint(element, { title, text }, units) {
  const largest = Math.max(...units.map((unit) => Math.abs(unit.value)), 1e-9);
  const of = (field) => units.filter((unit) => unit.field === field);
  const head = title ? [...painted(title, of("title"), largest), document.createTextNode(" – ")] : [];
  element.replaceChildren(...head, ...painted(text, of("text"), largest));
}

function painted(text, units, largest) {
  const pieces = [];
  let end = 0;
  for (const unit of [...units].sort((one, other) => one.start - other.start)) {
    if (unit.start < end) continue;
    // Characters are counted by code points there, by UTF-16 units here.
    pieces.push(document.createTextNode(slice(text, end, unit.start)));
    const word = document.createElement("span");
    const share = Math.abs(unit.value) / largest;
    word.className = `word ${unit.value < 0 ? "lowered" : "raised"}${share > 0.5 ? " strong" : ""}`;
    word.style.setProperty("--share", share.toFixed(3));
    word.title = `${unit.value > 0 ? "+" : ""}${unit.value.toFixed(3)}`;
    word.textContent = slice(text, unit.start, unit.end);
    pieces.push(word);
    end = unit.end;
  }
  pieces.push(document.createTextNode(slice(text, end)));
  return pieces;
}

function slice(text, start, end) {
  return [...text].slice(start, end).join("");
}

function showDraft(told) {
  const why = items.get(told.index)?.querySelector(".why");
  if (!why) return;
  why.hidden = false;
  why.classList.add("draft");
  why.append(told.text);
}

function showText(told) {
  const item = items.get(told.index);
  if (item) write(item.querySelector(".why"), item.querySelector(".mark"), told.text);
}

// Writes a verified text, the words that it cites marked.
function write(why, mark, text) {
  why.hidden = false;
  why.classList.remove("draft");
  const cited = new Set(text.cited.map((word) => word.toLowerCase()));
  const pieces = text.text.split(/([\p{L}\p{N}\p{M}’'.,]*[\p{L}\p{N}\p{M}])/u).map((piece) => {
    if (!cited.has(piece.toLowerCase())) return document.createTextNode(piece);
    const marked = document.createElement("mark");
    marked.textContent = piece;
    return marked;
  });
  why.replaceChildren(...pieces);
  mark.hidden = !(text.is_fallback && text.problems.some((problem) => problem !== "generator_failed"));
}

function showEnd(told) {
  const late = told.degraded.includes("attributor") ? " The values are coarse or missing: there was no time." : "";
  const silent = told.degraded.includes("explainer") ? " No language model wrote: the texts are fixed forms." : "";
  const nothing = items.size ? "" : " No document of the corpus shares a word with the query.";
  say(`Done.${nothing}${late}${silent}`);
}

async function showRankFlip(item, index, place) {
  const button = item.querySelector(".decides");
  const told = item.querySelector(".flip");
  button.disabled = true;
  told.hidden = false;
  told.textContent = "Searching …";
  let flip;
  try {
    const body = { ...asked, target: "rank", explain: { top_k: 1, skip: place } };
    await stream("v1/attribute", body, {
      attributions(found) { flip = found.explanations[index]?.rank_flip ?? flip; },
    });
    told.replaceChildren(...flipped(flip));
  } catch (error) {
    told.textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

// Says what was found of the words that hold a result at its rank.
function flipped(flip) {
  if (!flip) return ["These words could not be found out this time."];
  if (!flip.units.length) return ["No few words decide it."];
  const words = flip.units.map((unit) => {
    const marked = document.createElement("mark");
    marked.textContent = unit.text;
    return marked;
  });
  const listed = words.flatMap((word, n) => (n ? [", ", word] : [word]));
  return ["Without ", ...listed, ` it would stand at rank ${flip.flipped_rank}.`];
}

async function showContrast(item, index, place) {
  const panel = item.querySelector(".contrast");
  const button = item.querySelector(".above");
  button.disabled = true;
  const why = panel.querySelector(".why");
  panel.hidden = false;
  why.textContent = "Comparing …";
  try {
    const body = { ...asked, target: "margin",
                   explain: { text: true, contrast: true, top_k: 1, skip: place } };
    await stream("v1/explain", body, {
      attributions(told) {
        const above = told.explanations[index]?.above;
        if (!above) return;
        const next = panel.querySelector(".next");
        paint(next, shown.get(above.index), above.attribution.units);
        next.prepend(`The next one, ${above.margin.toFixed(2)} lower: `);
      },
      explanation(told) { write(why, panel.querySelector(".mark"), told.text); },
    });
  } catch (error) {
    why.textContent = error.message;
  } finally {
    button.disabled = false;
  }
}
