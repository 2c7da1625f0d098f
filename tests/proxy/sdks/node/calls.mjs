// Asks a proxy for what OpenAI's SDK can ask for, and prints what its user gets, as JSON: call by call, in an order that
// the test knows, since it has written down the engine's answers beforehand.
import OpenAI, { APIError } from "openai";

const { url, fullUrl, key, model } = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "Where is it warm?" }];
const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];

async function failure(asked) {
  try {
    await asked();
  } catch (error) {
    const { status, code, param } = error;
    const isOurs = error instanceof APIError;
    const saysWhen = Number(error.headers?.get("retry-after") ?? 0) >= 1;
    return { name: error.constructor.name, isOurs, status, code, param, hasId: Boolean(error.requestID), saysWhen };
  }
  return null;
}

async function collected(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const chat = (more) => client.chat.completions.create({ model, messages, ...more });
const text = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
const found = {};

const whole = await chat({});
found.chat = { text: whole.choices[0].message.content, hasId: Boolean(whole._request_id) };

const plain = await collected(await chat({ stream: true }));
found.stream = {
  text: text(plain),
  choices: [...new Set(plain.map((chunk) => chunk.choices.length))],
  usages: plain.filter((chunk) => chunk.usage).length,
};

const told = await collected(await chat({ stream: true, stream_options: { include_usage: true } }));
found.streamWithUsage = {
  text: text(told),
  last: told.at(-1).choices,
  tokens: told.at(-1).usage.completion_tokens,
};

const runner = client.chat.completions.stream({ model, messages, tools });
found.tools = (await runner.finalChatCompletion()).choices[0].message.tool_calls.map((call) => [
  call.function.name,
  call.function.arguments,
]);

found.completion = (await client.completions.create({ model, prompt: "Hello" })).choices[0].text;

const vectors = await client.embeddings.create({ model, input: "a" });
found.embeddings = vectors.data.map((each) => each.embedding);

found.response = (await client.responses.create({ model, input: "Hello" })).output_text;
const events = await collected(await client.responses.create({ model, input: "Hello", stream: true }));
found.responseStream = events
  .filter((event) => event.type === "response.output_text.delta")
  .map((event) => event.delta)
  .join("");

found.models = (await client.models.list()).data.map((each) => each.id);

const seen = [];
found.broken = await failure(async () => {
  for await (const chunk of await chat({ stream: true })) seen.push(chunk.choices[0].finish_reason);
});
found.seenBeforeTheBreak = seen;

found.badRequest = await failure(() => chat({ max_tokens: 0 }));
found.unknownModel = await failure(() => chat({ model: "other" }));
found.wrongKey = await failure(() => client.withOptions({ apiKey: "wrong" }).models.list());
const turnedAway = client.withOptions({ baseURL: `${fullUrl}/v1` });
found.full = await failure(() => turnedAway.chat.completions.create({ model, messages }));

const stopped = await chat({ stream: true });
for await (const _ of stopped) break; // the SDK closes the connection

console.log(JSON.stringify(found));
