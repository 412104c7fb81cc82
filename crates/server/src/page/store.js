// What stays in this browser: conversations and settings. The API key stays until the tab is closed.

const CONVERSATIONS = "dsv3.conversations";
const SETTINGS = "dsv3.settings";
const KEY = "dsv3.api_key";
const THEME = "dsv3.theme";

function read(storage, name, otherwise) {
  try {
    return JSON.parse(storage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(storage, name, value) {
  try {
    storage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false; // full, or forbidden
  }
}

/** `[{ id, title, messages: [{ role, content, reasoning?, figures?, error? }] }]`, the latest first. */
export function conversations() {
  const all = read(localStorage, CONVERSATIONS, []);
  return Array.isArray(all) ? all.filter((one) => one?.id && Array.isArray(one.messages)) : [];
}

/** Keeps conversations; the oldest go where there is no room. */
export function keepConversations(all) {
  let kept = all;
  while (!write(localStorage, CONVERSATIONS, kept) && kept.length > 1) kept = kept.slice(0, -1);
}

export function settings() {
  return read(localStorage, SETTINGS, {});
}

export function keepSettings(values) {
  write(localStorage, SETTINGS, values);
}

export function apiKey() {
  return read(sessionStorage, KEY, "");
}

export function keepApiKey(key) {
  write(sessionStorage, KEY, key);
}

/** "light", "dark", or null for the system's. */
export function theme() {
  return read(localStorage, THEME, null);
}

export function keepTheme(name) {
  write(localStorage, THEME, name);
}
