// The part of Markdown that models write, as elements. Text goes in as text only, so nothing of an answer is ever HTML.

const INLINE = /(`+)(.+?)\1|\*\*(.+?)\*\*|\*([^\s*](?:.*?[^\s*])?)\*|\[([^\]]+)\]\((https?:[^\s)]+)\)/s;

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function inline(text) {
  const parts = [];
  for (let rest = text; rest; ) {
    const found = INLINE.exec(rest);
    if (!found) {
      parts.push(rest);
      break;
    }
    if (found.index) parts.push(rest.slice(0, found.index));
    const [all, , code, bold, italic, label, href] = found;
    if (code !== undefined) parts.push(element("code", code));
    else if (bold !== undefined) parts.push(element("strong", ...inline(bold)));
    else if (italic !== undefined) parts.push(element("em", ...inline(italic)));
    else {
      const link = element("a", label);
      link.href = href;
      link.rel = "noopener noreferrer";
      link.target = "_blank";
      parts.push(link);
    }
    rest = rest.slice(found.index + all.length);
  }
  return parts;
}

function lines(text) {
  return text.split("\n").flatMap((line, number) => (number ? [element("br"), ...inline(line)] : inline(line)));
}

/** Takes the lines that `test` holds for from the front. */
function takeWhile(rest, test) {
  const end = rest.findIndex((line) => !test(line));
  return rest.splice(0, end < 0 ? rest.length : end);
}

function list(rest, marker, name) {
  const items = [];
  while (rest.length && marker.test(rest[0])) {
    const first = rest.shift().replace(marker, "");
    const more = takeWhile(rest, (line) => /^\s+\S/.test(line) && !marker.test(line)).map((line) => line.trim());
    items.push(element("li", ...lines([first, ...more].join("\n"))));
  }
  return element(name, ...items);
}

function block(rest) {
  const fence = /^\s*(```+|~~~+)/.exec(rest[0]);
  if (fence) {
    rest.shift();
    const code = takeWhile(rest, (line) => !line.trim().startsWith(fence[1]));
    rest.shift();
    return element("pre", element("code", code.join("\n")));
  }
  const heading = /^(#{1,6})\s+(.*)$/.exec(rest[0]);
  if (heading) {
    rest.shift();
    return element(`h${Math.min(6, heading[1].length + 2)}`, ...inline(heading[2]));
  }
  const bullet = /^\s*[-*+]\s+/;
  if (bullet.test(rest[0])) return list(rest, bullet, "ul");
  const number = /^\s*\d+[.)]\s+/;
  if (number.test(rest[0])) return list(rest, number, "ol");
  if (rest[0].startsWith(">")) {
    const quoted = takeWhile(rest, (line) => line.startsWith(">")).map((line) => line.replace(/^>\s?/, ""));
    return element("blockquote", ...lines(quoted.join("\n")));
  }
  const isText = (line) => line.trim() && !/^(\s*(```|~~~)|#{1,6}\s|\s*[-*+]\s|\s*\d+[.)]\s|>)/.test(line);
  const text = [rest.shift(), ...takeWhile(rest, isText)];
  return element("p", ...lines(text.join("\n")));
}

/** Takes blocks from lines, until there are none: `{ element, start }`, where `start` is the block's first line. */
function blocks(lines) {
  const rest = [...lines];
  const found = [];
  while (rest.length) {
    const start = lines.length - rest.length;
    if (rest[0].trim()) found.push({ element: block(rest), start });
    else rest.shift();
  }
  return found;
}

/** Elements for a text. */
export function markdown(text) {
  return blocks(text.split("\n")).map(({ element }) => element);
}

/**
 * Shows a text that grows in an element. A block that nothing can change any more is made once: what is made anew each time
 * begins with the last block of whole lines, for the next line may go on with it, and a line that is not whole may become
 * anything.
 */
export class GrowingMarkdown {
  constructor(parent) {
    this.parent = parent;
    this.done = 0; // characters of the text whose blocks stay
    this.open = []; // elements of the others
  }

  update(text) {
    const rest = text.slice(this.done).split("\n");
    const found = blocks(rest);
    const staying = Math.max(0, found.findLastIndex(({ start }) => start < rest.length - 1));
    this.open.forEach((one) => one.remove());
    this.parent.append(...found.map(({ element }) => element));
    this.open = found.slice(staying).map(({ element }) => element);
    if (staying) this.done += rest.slice(0, found[staying].start).join("\n").length + 1;
  }
}
