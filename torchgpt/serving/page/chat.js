// The chat page: one conversation, kept here; the server remembers nothing. All text goes into the page as text.

const $ = (id) => document.getElementById(id);
const TOP = 8; // alternatives to ask for with each token

const [model] = (await (await fetch("v1/models")).json()).data;
const settings = $("settings").elements;
let messages = []; // {role, content}, without the system message
let running = null; // AbortController of the answer that is being written
let chosen = null; // the token that is looked into

// --- the server ------------------------------------------------------------------------------------------------------

/** Yields the chunks of a streamed answer. Throws an Error with the server's sentence. */
async function* stream(path, body, signal) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The server ended the answer early.");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

/** {text, token, chance, top: [[token, chance], ...]} of a chunk's choice, or null if it has no token. */
function readToken(choice) {
  const found = choice.logprobs;
  if (!found) return null;
  if (found.content) {
    const [entry] = found.content;
    const top = entry.top_logprobs.map((t) => [t.token, Math.exp(t.logprob)]);
    return { text: choice.delta.content, token: entry.token, chance: Math.exp(entry.logprob), top };
  }
  const top = Object.entries(found.top_logprobs[0]).map(([token, logprob]) => [token, Math.exp(logprob)]);
  const chance = Math.exp(found.token_logprobs[0]);
  return { text: choice.text, token: found.tokens[0], chance, top: top.sort((a, b) => b[1] - a[1]) };
}

function readSettings() {
  const random = crypto.getRandomValues(new Uint32Array(1))[0];
  return {
    temperature: settings.temperature.valueAsNumber,
    top_p: settings.top_p.valueAsNumber,
    top_k: settings.top_k.valueAsNumber || 0,
    max_tokens: settings.max_tokens.valueAsNumber || 1,
    seed: Number.isNaN(settings.seed.valueAsNumber) ? random : settings.seed.valueAsNumber,
  };
}

/** The request for an answer to `messages`, or for what follows the text `given`. */
function requestFor(given) {
  if (!model.chat) return ["v1/completions", { prompt: given, logprobs: TOP, ...readSettings() }];
  const system = settings.system.value.trim();
  const conversation = system ? [{ role: "system", content: system }, ...messages] : messages;
  const inside = { logprobs: true, top_logprobs: TOP };
  return ["v1/chat/completions", { messages: conversation, truncation: "auto", ...inside, ...readSettings() }];
}

// --- the conversation ------------------------------------------------------------------------------------------------

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function button(label, onClick) {
  const made = element("button", "", label);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}

function showError(sentence) {
  $("error").textContent = sentence;
  $("error").hidden = !sentence;
}

function setRunning(controller) {
  running = controller;
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  $("log").setAttribute("aria-busy", String(running !== null));
}

/** Adds to the log, which keeps showing its end if it did. */
function append(parent, ...children) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  parent.append(...children);
  if (atEnd) log.scrollTop = log.scrollHeight;
}

/** A function that adds a child to `parent` with the next frame, with all others of that frame, and one that adds them
    now: a layout for every token of a fast model would leave the page no time for a click. */
function byFrame(parent) {
  let waiting = [];
  const flush = () => {
    if (waiting.length) append(parent, ...waiting);
    waiting = [];
  };
  const add = (child) => {
    if (waiting.push(child) === 1) requestAnimationFrame(flush);
  };
  return [add, flush];
}

/** Writes an answer into the log; returns its text, or null if there is none because of an error. */
async function write(given) {
  const answer = element("article", "answer busy");
  const text = element("div", "text");
  text.tabIndex = 0;
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", "Answer; the arrow keys look into its tokens");
  answer.append(text);
  if (!model.chat) text.append(element("span", "given", given));
  append($("log"), answer);
  document.querySelectorAll(".under button.last").forEach((old) => old.remove());
  const controller = new AbortController();
  setRunning(controller);
  const [path, body] = requestFor(given);
  const [add, flush] = byFrame(text);
  let [count, reason, unshown] = [0, "stopped by you", []];
  try {
    for await (const chunk of stream(path, body, controller.signal)) {
      if (chunk.dropped_messages && !answer.querySelector(".forgotten")) {
        answer.prepend(element("p", "forgotten", `The oldest ${chunk.dropped_messages} messages no longer fit the model's context of ${model.context_length} tokens.`));
      }
      for (const choice of chunk.choices) {
        const token = readToken(choice);
        if (token) {
          count += 1;
          unshown.push(token); // bytes of one character come as several tokens
          if (token.text) add(makeToken(unshown));
          if (token.text) unshown = [];
        }
        if (choice.finish_reason) reason = choice.finish_reason === "stop" ? "ended by itself" : "cut at the limit";
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      showError(error.message);
      reason = "ended by an error";
      if (!count) answer.remove();
    }
  }
  flush();
  answer.classList.remove("busy");
  setRunning(null);
  if (!answer.isConnected) return null;
  const under = element("div", "under");
  const tokens = () => [...text.querySelectorAll(".token")];
  if (count) under.append(button("Look inside", () => look(tokens()[0])));
  const again = button("Regenerate", () => regenerate(answer, given));
  again.classList.add("last");
  under.append(again);
  if (!model.chat) {
    const more = button("Continue", () => write(text.textContent));
    more.classList.add("last");
    under.append(more);
  }
  under.append(element("span", "meta", `${count} ${count === 1 ? "token" : "tokens"} · ${reason} · seed ${body.seed}`));
  append(answer, under);
  return tokens().map((token) => token.textContent).join("");
}

/** Answers `messages`, which end with the user's, and keeps the answer. */
async function answerMessages() {
  const conversation = messages;
  const text = await write("");
  if (conversation === messages && text !== null) messages.push({ role: "assistant", content: text });
  return text;
}

async function regenerate(answer, given) {
  if (running) return;
  close();
  showError("");
  answer.remove();
  if (!model.chat) return void (await write(given));
  messages.pop();
  await answerMessages();
}

async function send() {
  const field = $("message");
  const content = field.value;
  if (running || (model.chat && !content.trim())) return;
  showError("");
  document.querySelector(".hello")?.remove();
  field.value = "";
  fitField();
  if (!model.chat) {
    if ((await write(content)) === null) field.value = content;
    return;
  }
  const mine = element("div", "mine");
  mine.append(element("div", "text", content));
  append($("log"), mine);
  messages.push({ role: "user", content });
  const conversation = messages;
  if ((await answerMessages()) === null && conversation === messages) {
    messages.pop(); // the message goes back to where it can be mended
    mine.remove();
    field.value = content;
    fitField();
  }
}

function newChat() {
  running?.abort();
  close();
  showError("");
  messages = [];
  const hello = element("p", "hello");
  hello.append(element("strong", "", model.chat ? "Say something" : "Write the beginning of a text"));
  hello.append(
    model.chat
      ? "Every answer can be looked into: choose a token to see what else the model thought of."
      : "This model was not tuned on instructions: it continues what you write. Choose a token to see what else it thought of.",
  );
  $("log").replaceChildren(hello);
  $("message").focus();
}

// --- look inside -----------------------------------------------------------------------------------------------------

/** White space as signs that can be seen. */
function visible(token) {
  return token.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
}

/** The text that a group of tokens, nearly always a single one, added to the answer. */
function makeToken(group) {
  const made = element("span", "token", group.at(-1).text);
  made.group = group;
  made.style.setProperty("--chance", Math.min(...group.map((token) => token.chance)));
  return made;
}

function row(name, chance, className) {
  const line = element("li", className);
  const bar = element("span", "bar");
  bar.append(element("i", ""));
  bar.firstChild.style.width = `${chance * 100}%`;
  const label = element("code", "", name);
  label.title = name;
  const percent = chance < 0.001 ? "< 0.1 %" : `${(chance * 100).toFixed(1)} %`;
  line.append(label, bar, element("span", "percent", percent));
  return line;
}

function rows({ token, chance, top }) {
  const isTaken = ([name, p]) => name === token && Math.abs(p - chance) < 1e-6;
  const all = top.some(isTaken) ? top : [...top, [token, chance]];
  const lines = all.map((one) => row(visible(one[0]), one[1], isTaken(one) ? "taken" : ""));
  const others = 1 - all.reduce((sum, [, p]) => sum + p, 0);
  if (others > 0.0005) lines.push(row("all others", others, "others"));
  return lines;
}

/** The end of the text in front of a token. */
function textBefore(token, length = 40) {
  let text = "";
  for (let one = token.previousElementSibling; one && text.length <= length; one = one.previousElementSibling) {
    text = one.textContent + text;
  }
  return text.length > length ? `…${text.slice(-length)}` : text;
}

/** Shows the alternatives of a token. */
function look(token) {
  chosen?.classList.remove("chosen");
  document.querySelectorAll(".looking").forEach((old) => old.classList.remove("looking"));
  chosen = token;
  chosen.classList.add("chosen");
  chosen.closest(".answer").classList.add("looking");
  $("context").replaceChildren(textBefore(token), element("mark", "", visible(token.textContent)));
  const lists = token.group.map(rows);
  lists.slice(1).forEach(([first]) => first.classList.add("another"));
  $("alternatives").replaceChildren(...lists.flat());
  $("inside").hidden = false;
  chosen.scrollIntoView({ block: "nearest" });
}

function step(by) {
  const tokens = [...chosen.parentElement.querySelectorAll(".token")];
  const next = tokens[tokens.indexOf(chosen) + by];
  if (next) look(next);
}

function close() {
  chosen?.classList.remove("chosen");
  chosen?.closest(".answer")?.classList.remove("looking");
  chosen = null;
  $("inside").hidden = true;
}

$("log").addEventListener("click", (event) => {
  if (event.target.matches(".token")) look(event.target);
});
$("log").addEventListener("mouseover", (event) => {
  if (chosen && event.target.matches(".looking .token")) look(event.target);
});
$("log").addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by || !event.target.matches(".answer > .text")) return;
  event.preventDefault();
  if (chosen?.parentElement === event.target) return step(by);
  const first = event.target.querySelector(".token");
  if (first) look(first);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") close();
});
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("close").addEventListener("click", close);

// --- the frame -------------------------------------------------------------------------------------------------------

function fitField() {
  const field = $("message");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

function showSettings() {
  for (const output of $("settings").querySelectorAll("output")) {
    output.value = settings[output.htmlFor].valueAsNumber.toFixed(2);
  }
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || !model.chat) return;
  event.preventDefault();
  send();
});
$("message").addEventListener("input", fitField);
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", newChat);
$("settings").addEventListener("input", showSettings);
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("settings-button").addEventListener("click", () => {
  $("settings").hidden = !$("settings").hidden;
  if (!$("settings").hidden) close(); // a small screen has no room for both
  $("settings-button").setAttribute("aria-expanded", String(!$("settings").hidden));
});

$("model").textContent = model.id;
settings.max_tokens.max = model.max_new_tokens;
settings.max_tokens.value = Math.min(settings.max_tokens.value, model.max_new_tokens);
if (!model.chat) {
  $("send").textContent = "Write";
  $("new").textContent = "New text";
  $("message").rows = 3;
  $("message").setAttribute("aria-label", "Beginning of a text");
  document.querySelector(".chat-only").remove();
}
$("message").placeholder = model.chat ? "Message" : "Once upon a time";
showSettings();
newChat();
document.body.dataset.ready = "true";
