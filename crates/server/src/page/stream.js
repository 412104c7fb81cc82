// The server's API: one answer as a stream of parts, and the other small requests.

/** An error that the server gave: `message`, and `status` of HTTP. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function headers(key) {
  const all = { "content-type": "application/json" };
  if (key) all.authorization = `Bearer ${key}`;
  return all;
}

async function failure(response) {
  const text = await response.text();
  try {
    return new ApiError(response.status, JSON.parse(text).error.message);
  } catch {
    return new ApiError(response.status, text || response.statusText);
  }
}

/** The data of server-sent events, line by line, as they come. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Asks for an answer. Yields `{ reasoning }`, `{ content }`, `{ finish }` and `{ usage }` as they come; aborting `signal` ends
 * the answer on the server, too.
 */
export async function* answer(request, key, signal) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(key), body, signal });
  if (!response.ok) throw await failure(response);
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.code ?? 500, chunk.error.message);
    const choice = chunk.choices?.[0];
    if (choice?.delta?.reasoning_content) yield { reasoning: choice.delta.reasoning_content };
    if (choice?.delta?.content) yield { content: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (chunk.usage) yield { usage: chunk.usage };
  }
}

/** The models that the server has; `signal` may stop the question. */
export async function models(key, signal) {
  const response = await fetch("v1/models", { headers: headers(key), signal });
  if (!response.ok) throw await failure(response);
  return (await response.json()).data;
}

/** Which experts fire, until `signal` is aborted: `{ first_layer, counts: [[of each expert] of each layer] }`. */
export async function* firedExperts(key, signal) {
  const response = await fetch("v1/experts", { headers: headers(key), signal });
  if (!response.ok) throw await failure(response);
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    yield JSON.parse(data);
  }
}
