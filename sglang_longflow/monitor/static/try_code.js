// SPDX-License-Identifier: Apache-2.0
// What a run sends, and the same as a command line and as a program. A key is never written out.

/** The request of a form's values: {path, body}. A budget of 0 is full KV. */
export function requestOf({ chat, model, prompt, budget, policy, maxTokens, temperature }) {
  const custom = { kv_budget: budget };
  if (policy && budget !== 0) custom.kv_policy = policy;
  return {
    path: chat ? "v1/chat/completions" : "v1/completions",
    body: {
      model,
      ...(chat ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
      max_tokens: maxTokens,
      temperature,
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
      custom_params: custom,
    },
  };
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A line for a POSIX shell. */
export function curl({ path, body }, base, hasKey) {
  const lines = [`curl -N ${quoted(new URL(path, base).href)}`, `-H 'Content-Type: application/json'`];
  if (hasKey) lines.push('-H "Authorization: Bearer $LONGFLOW_API_KEY"');
  lines.push(`-d ${quoted(JSON.stringify(body, null, 2))}`);
  return lines.join(" \\\n  ");
}

/** A literal of Python; JSON's strings and numbers are Python's too. */
function literal(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    const items = Object.entries(value).map(([name, inner]) => `${JSON.stringify(name)}: ${literal(inner)}`);
    return `{${items.join(", ")}}`;
  }
  return JSON.stringify(value);
}

/** A program for the openai package. */
export function python({ path, body }, base, hasKey) {
  const { custom_params, ...known } = body;
  const chat = path.includes("chat");
  const words = Object.entries(known).map(([name, value]) => `    ${name}=${literal(value)},`);
  const key = hasKey ? 'os.environ["LONGFLOW_API_KEY"]' : '"none"';
  return [
    ...(hasKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(new URL("v1", base).href)}, api_key=${key})`,
    `stream = client.${chat ? "chat.completions" : "completions"}.create(`,
    ...words,
    `    extra_body={"custom_params": ${literal(custom_params)}},`,
    ")",
    "for chunk in stream:",
    "    for choice in chunk.choices:",
    `        print(choice.${chat ? "delta.content" : "text"} or "", end="", flush=True)`,
    'print("\\n", chunk.metadata)  # kv_resident_tokens and the like',
  ].join("\n");
}
