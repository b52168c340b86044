// SPDX-License-Identifier: Apache-2.0
// One prompt to SGLang's OpenAI routes, and the events of its stream.

/** Why there is no answer, or no more of it, in words. */
export class Failure extends Error {}

function messageOf(body) {
  const error = body?.error ?? body;
  return typeof error === "string" ? error : error?.message;
}

async function refusal(response, path, hasKey) {
  const message = messageOf(await response.json().catch(() => null));
  if (response.status === 401) {
    return hasKey ? "The server refused the API key." : "The server asks for its API key.";
  }
  if (response.status === 404 && !message) return `The server has no /${path}.`;
  return message ?? `The server answered ${response.status}.`;
}

/** The JSON of each event; throws if the stream ends before its "[DONE]". */
async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let unfinished = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (unfinished + decoder.decode(value, { stream: true })).split("\n");
      unfinished = lines.pop();
      for (const line of lines) {
        if (line === "data: [DONE]") return;
        if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new Failure("The answer broke off before its end.");
}

/**
 * POST `body` to `path` and yield what streams back: {text, thought, tokens, promptTokens, numbers,
 * finish}. Counts and numbers are missing where an event has none.
 */
export async function* stream(path, body, key, signal) {
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: {
        "Content-Type": "application/json",
        ...(key ? { Authorization: `Bearer ${key}` } : {}),
      },
      body: JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      signal,
    });
    if (!response.ok) throw new Failure(await refusal(response, path, Boolean(key)));
    for await (const event of events(response)) {
      if (event.error || event.object === "error") {
        throw new Failure(messageOf(event) ?? "The server reported an error.");
      }
      const choice = event.choices?.[0];
      yield {
        text: choice?.delta?.content ?? choice?.text ?? "",
        thought: choice?.delta?.reasoning_content ?? "",
        tokens: event.usage?.completion_tokens,
        promptTokens: event.usage?.prompt_tokens,
        numbers: event.metadata,
        finish: choice?.finish_reason,
      };
    }
  } catch (error) {
    if (error instanceof Failure || error.name === "AbortError") throw error;
    throw new Failure("The connection to the server is lost.");
  }
}
