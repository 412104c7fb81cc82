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

/** Elements for a text. */
export function markdown(text) {
  const rest = text.split("\n");
  const blocks = [];
  while (rest.length) {
    if (rest[0].trim()) blocks.push(block(rest));
    else rest.shift();
  }
  return blocks;
}
