// The page: one conversation is open, one answer at a time comes in.

import { ExpertsPicture } from "./experts.js";
import { GrowingMarkdown } from "./markdown.js";
import * as store from "./store.js";
import { ApiError, answer, models } from "./stream.js";

const $ = (id) => document.getElementById(id);

const all = store.conversations();
let current = all[0] ?? null;
let model = "";
/** The controller of the answer that comes in, if one does. */
let running = null;
/** The timer of the next question for the model, while it is loaded. */
let searching = null;

// ---------------------------------------------------------------- conversations

function open(conversation) {
  running?.abort();
  current = conversation;
  showList();
  showMessages();
  $("sidebar").classList.remove("open");
  $("menu").setAttribute("aria-expanded", "false");
  $("input").focus();
}

function keep() {
  store.keepConversations(all.filter((one) => one.messages.length));
}

function showList() {
  $("title").textContent = current?.title ?? "New conversation";
  $("conversations").replaceChildren(
    ...all.map((one) => {
      const item = document.createElement("li");
      if (one === current) item.setAttribute("aria-current", "true");
      const title = document.createElement("button");
      title.className = "open";
      title.textContent = one.title;
      title.addEventListener("click", () => open(one));
      const remove = document.createElement("button");
      remove.className = "delete";
      remove.textContent = "×";
      remove.setAttribute("aria-label", `Delete ${one.title}`);
      remove.addEventListener("click", () => {
        all.splice(all.indexOf(one), 1);
        keep();
        if (one === current) open(all[0] ?? null);
        else showList();
      });
      item.append(title, remove);
      return item;
    }),
  );
}

// ---------------------------------------------------------------- messages

/** The element of a message; `update` shows what the message has become. */
function messageView(message) {
  const view = $("message-template").content.cloneNode(true).firstElementChild;
  const [heading, thought, body, figures] = view.children;
  view.classList.add(message.role);
  heading.textContent = message.role === "user" ? "You" : "Answer";
  view.querySelector(".copy").addEventListener("click", () => navigator.clipboard?.writeText(message.content));
  view.querySelector(".regenerate").addEventListener("click", () => regenerate(message));
  view.querySelector(".edit").addEventListener("click", () => edit(message));
  const shown = new GrowingMarkdown(body);
  const update = (isRunning) => {
    thought.hidden = !message.reasoning;
    if (message.reasoning) {
      showGrown(thought.querySelector(".body"), message.reasoning.trim());
      thought.querySelector("summary").textContent = isRunning && !message.content ? "Thinking…" : "Thought";
    }
    if (message.role === "user") body.textContent = message.content;
    else shown.update(message.content);
    body.classList.toggle("waiting", isRunning);
    figures.textContent = message.error ?? message.figures ?? "";
    figures.classList.toggle("error", Boolean(message.error));
  };
  update(false);
  return { view, update };
}

/** Shows a text in an element that has shown its beginning. */
function showGrown(element, text) {
  const shown = element.firstChild?.data ?? "";
  if (shown && text.startsWith(shown)) element.firstChild.appendData(text.slice(shown.length));
  else element.textContent = text;
}

function showMessages() {
  const messages = current?.messages ?? [];
  if (messages.length) {
    $("messages").replaceChildren(...messages.map((message) => messageView(message).view));
  } else {
    const empty = document.createElement("p");
    empty.className = "empty";
    empty.textContent = "Ask something.";
    $("messages").replaceChildren(empty);
  }
  scrollDown(true);
}

/** Follows the end, unless the reader has gone up. */
function scrollDown(always) {
  const box = $("messages");
  if (always || box.scrollHeight - box.scrollTop - box.clientHeight < 120) box.scrollTop = box.scrollHeight;
}

// ---------------------------------------------------------------- asking

function send(text) {
  if (!current) {
    current = { id: crypto.randomUUID?.() ?? String(Date.now()), title: text.slice(0, 60), messages: [] };
    all.unshift(current);
  }
  current.messages.push({ role: "user", content: text });
  showList();
  showMessages();
  return ask();
}

function regenerate(message) {
  const at = current.messages.indexOf(message);
  if (running || at < 0) return;
  current.messages.length = at;
  showMessages();
  ask();
}

function edit(message) {
  const at = current.messages.indexOf(message);
  if (running || at < 0) return;
  current.messages.length = at;
  showMessages();
  $("input").value = message.content;
  grow();
  $("input").focus();
}

/** The request for the conversation's next answer, but for the model. */
function request(conversation) {
  const { system, thinking, ...sampling } = store.settings();
  const messages = conversation.messages.map(({ role, content }) => ({ role, content }));
  if (system) messages.unshift({ role: "system", content: system });
  const numbers = Object.entries(sampling).filter(([, value]) => value !== "" && value != null);
  const made = { messages, ...Object.fromEntries(numbers.map(([name, value]) => [name, Number(value)])) };
  if (thinking) made.chat_template_kwargs = { thinking: true };
  return made;
}

async function ask() {
  const conversation = current;
  const body = request(conversation);
  const message = { role: "assistant", content: "", reasoning: "" };
  conversation.messages.push(message);
  const { view, update } = messageView(message);
  $("messages").append(view);
  running = new AbortController();
  const mine = running;
  setBusy(true);
  update(true);
  scrollDown(true);
  const clock = { start: performance.now(), first: null };
  let frame = 0;
  const later = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      update(running === mine);
      scrollDown(false);
    });
  };
  try {
    // The key may have been given just now.
    if (!model) await learnModel(mine.signal);
    for await (const part of answer({ model, ...body }, store.apiKey(), mine.signal)) {
      if (part.reasoning || part.content) clock.first ??= performance.now();
      message.reasoning += part.reasoning ?? "";
      message.content += part.content ?? "";
      if (part.usage) message.figures = figures(part.usage, clock);
      if (part.finish === "length") message.finish = "length";
      later();
    }
  } catch (error) {
    if (error.name !== "AbortError") message.error = explain(error);
    else message.figures = "stopped";
  }
  if (!message.content && !message.reasoning && !message.error) message.figures ??= "no answer";
  if (message.finish) message.figures = `${message.figures ?? ""} · ended at the limit of tokens`;
  cancelAnimationFrame(frame);
  if (running === mine) running = null;
  setBusy(running !== null);
  update(false);
  scrollDown(false);
  $("live").textContent = message.error ?? "The answer is complete.";
  keep();
}

/** What is shown below an answer. */
function figures(usage, clock) {
  const seconds = (performance.now() - (clock.first ?? clock.start)) / 1000;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const rate = seconds > 0 && usage.completion_tokens > 1 ? (usage.completion_tokens - 1) / seconds : 0;
  const parts = [`${usage.completion_tokens} tokens`];
  if (rate) parts.push(`${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`);
  if (clock.first) parts.push(`first after ${((clock.first - clock.start) / 1000).toFixed(2)} s`);
  parts.push(`${cached} of ${usage.prompt_tokens} prompt tokens from the cache`);
  return parts.join(" · ");
}

function explain(error) {
  if (!(error instanceof ApiError)) return `The server cannot be reached: ${error.message}`;
  if (error.status === 401) {
    $("settings").showModal();
    $("settings").querySelector("[name=api_key]").focus();
  }
  return error.message;
}

function setBusy(isBusy) {
  $("send").hidden = isBusy;
  $("stop").hidden = !isBusy;
  if (!isBusy) $("input").focus();
}

function stop() {
  running?.abort();
}

// ---------------------------------------------------------------- the rest of the page

function grow() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}

function submit() {
  const text = $("input").value.trim();
  if (!text || running) return;
  $("input").value = "";
  grow();
  send(text);
}

function openSettings() {
  const form = $("settings").querySelector("form");
  const values = { ...store.settings(), api_key: store.apiKey() };
  for (const field of form.elements) {
    if (!field.name) continue;
    if (field.type === "checkbox") field.checked = Boolean(values[field.name]);
    else field.value = values[field.name] ?? "";
  }
  $("settings").showModal();
}

function closeSettings() {
  const values = {};
  for (const field of $("settings").querySelector("form").elements) {
    if (field.name) values[field.name] = field.type === "checkbox" ? field.checked : field.value;
  }
  const { api_key: key, ...rest } = values;
  store.keepSettings(rest);
  store.keepApiKey(key);
  findModel();
}

function nextTheme() {
  const names = [null, "light", "dark"];
  const next = names[(names.indexOf(store.theme()) + 1) % names.length];
  store.keepTheme(next);
  showTheme();
}

function showTheme() {
  const name = store.theme();
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  $("theme").textContent = `Theme: ${name ?? "system"}`;
}

async function learnModel(signal) {
  model = (await models(store.apiKey(), signal))[0]?.id ?? "";
  $("model").textContent = model;
}

/** Says where the model's name stands what is wrong, if something is. */
async function findModel() {
  clearTimeout(searching);
  try {
    await learnModel();
  } catch (error) {
    $("model").textContent = error instanceof ApiError ? error.message : "no server";
    // A large model takes its time to load.
    if (error.status === 503) searching = setTimeout(findModel, 1000);
  }
}

let watching = null;
const picture = new ExpertsPicture($("experts-canvas"), $("experts-caption"));

async function toggleExperts() {
  const isOn = !watching;
  $("experts").hidden = !isOn;
  $("experts-open").setAttribute("aria-pressed", String(isOn));
  if (!isOn) {
    watching.abort();
    watching = null;
    return;
  }
  watching = new AbortController();
  const { signal } = watching;
  try {
    await picture.watch(store.apiKey(), signal);
  } catch (error) {
    if (!signal.aborted) $("experts-caption").textContent = error.message;
  }
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("input").addEventListener("input", grow);
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", () => open(null));
$("theme").addEventListener("click", nextTheme);
$("settings-open").addEventListener("click", openSettings);
$("settings").addEventListener("close", closeSettings);
$("experts-open").addEventListener("click", toggleExperts);
$("menu").addEventListener("click", () => {
  const isOpen = $("sidebar").classList.toggle("open");
  $("menu").setAttribute("aria-expanded", String(isOpen));
});
document.addEventListener("keydown", (event) => {
  const command = event.ctrlKey || event.metaKey;
  if (event.key === "Escape" && running && !$("settings").open) stop();
  else if (command && event.shiftKey && event.key.toLowerCase() === "o") open(null);
  else if (command && event.key === ",") openSettings();
  else if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName)) $("input").focus();
  else return;
  event.preventDefault();
});

showTheme();
showList();
showMessages();
findModel();
