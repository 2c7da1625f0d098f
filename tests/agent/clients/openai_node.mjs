// Asks an agent for what OpenAI's SDK can ask for, and prints what its user gets, as JSON.
import OpenAI from "openai";

const { url } = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const model = "muster-agent";
const found = {};

async function collected(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

const chat = (text, more) =>
  client.chat.completions.create({ model, messages: [{ role: "user", content: text }], ...more });

found.models = (await client.models.list()).data.map((each) => each.id);

const whole = await chat("calculate");
found.chat = { text: whole.choices[0].message.content, ends: whole.choices[0].finish_reason };

const chunks = await collected(await chat("calculate", { stream: true, stream_options: { include_usage: true } }));
found.stream = {
  text: chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""),
  calls: chunks.filter((chunk) => chunk.choices[0]?.delta.tool_calls).length,
  hasUsage: chunks.at(-1).usage.total_tokens > 0,
};

const first = await client.responses.create({ model, input: "calculate" });
found.response = { text: first.output_text, items: first.output.map((item) => item.type), status: first.status };

const next = await client.responses.create({ model, input: "count", previous_response_id: first.id });
found.next = next.output_text;

const events = await collected(await client.responses.create({ model, input: "calculate", stream: true }));
found.responseStream = {
  first: events[0].type,
  last: events.at(-1).type,
  text: events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta).join(""),
};

const conversation = await client.conversations.create({ metadata: { about: "sums" } });
await client.responses.create({ model, input: "calculate", conversation: conversation.id });
found.conversation = (await client.responses.create({ model, input: "count", conversation: conversation.id })).output_text;
found.kept = (await client.responses.retrieve(first.id)).output_text;

try {
  await chat("?", { model: "nobody" });
} catch (error) {
  found.unknownModel = [error.constructor.name, error.status, error.code];
}

console.log(JSON.stringify(found));
