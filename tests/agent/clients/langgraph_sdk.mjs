// Asks an agent service for what LangGraph's SDK for JavaScript can ask for, and prints what its user gets, as JSON: call
// by call, in an order that the test knows, since it has written down the model's answers beforehand.
import { Client } from "@langchain/langgraph-sdk";

const { url } = JSON.parse(process.argv[2]);
const client = new Client({ apiUrl: url, callerOptions: { maxRetries: 0 } });
const input = (content) => ({ messages: [{ type: "human", content }] });
const found = {};

async function collected(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

async function failure(asked) {
  try {
    await asked();
  } catch (error) {
    return error.status ?? error.message;
  }
  return null;
}

const names = (parts) => [...new Set(parts.map((part) => part.event))];
const texts = (values) => values.messages.map((message) => [message.type, message.content]);

// The service and its assistants.
const [assistant] = await client.assistants.search({ graphId: "agent" });
found.assistant = assistant.graph_id;
found.nodes = (await client.assistants.getGraph(assistant.assistant_id)).nodes.map((node) => node.id).includes("model");
found.schemas = (await client.assistants.getSchemas(assistant.assistant_id)).graph_id;

// A run in each mode.
const { thread_id: thread } = await client.threads.create({ metadata: { kind: "test" } });
found.modes = {};
const modes = ["values", "updates", "messages", "messages-tuple", "events", "custom", "debug", "tasks", "checkpoints"];
for (const mode of modes) {
  const parts = await collected(client.runs.stream(thread, "agent", { input: input("hi"), streamMode: mode }));
  found.modes[mode] = names(parts);
}
found.count = (await client.runs.list(thread, { limit: 20 })).length;

// To the end, in each way.
found.wait = texts(await client.runs.wait(thread, "agent", { input: input("wait") })).at(-1);
const joined = await client.runs.create(thread, "agent", { input: input("join") });
found.join = texts(await client.runs.join(thread, joined.run_id)).at(-1);
found.stateless = texts(await client.runs.wait(null, "agent", { input: input("alone") }));

// A stream that breaks off and is taken up again.
let begun;
const resumable = { input: input("resume"), streamMode: ["values", "messages-tuple"], streamResumable: true };
const first = [];
const broken = client.runs.stream(thread, "agent", { ...resumable, onRunCreated: (run) => (begun = run) });
for await (const part of broken) {
  first.push(part);
  if (first.length === 3) break;
}
const rest = await collected(
  client.runs.joinStream(thread, begun.run_id, { lastEventId: first.at(-1).id, streamMode: ["values", "messages-tuple"] }),
);
const again = await collected(client.runs.joinStream(thread, begun.run_id, { lastEventId: "-1" }));
found.resumed = [...first, ...rest].map((part) => part.id).join() === again.map((part) => part.id).join();
found.last = rest.at(-1).event;

// Cancelled in the middle of a model call.
const { thread_id: stopped } = await client.threads.create();
const cancelled = await client.runs.create(stopped, "agent", { input: input("hold") });
while ((await client.runs.get(stopped, cancelled.run_id)).status !== "running");
await client.runs.cancel(stopped, cancelled.run_id, true);
found.cancelled = (await client.runs.get(stopped, cancelled.run_id)).status;
found.cancelledAgain = await failure(() => client.runs.cancel(stopped, cancelled.run_id, true));

// A person is asked, and answers.
const { thread_id: asking } = await client.threads.create();
const asked = await client.runs.wait(asking, "agent", { input: input("mail") });
found.question = asked.__interrupt__[0].value.action_requests[0].args;
found.asking = (await client.threads.get(asking)).status;
const decisions = { decisions: [{ type: "approve" }] };
const answered = await collected(
  client.runs.stream(asking, "agent", { command: { resume: decisions }, streamMode: "values" }),
);
found.answered = answered.at(-2).data.messages.at(-1).content;

// States.
const history = await client.threads.getHistory(thread, { limit: 3 });
found.history = history.map((state) => state.checkpoint.checkpoint_id).length;
found.parent = history[0].parent_checkpoint.checkpoint_id === history[1].checkpoint.checkpoint_id;
const state = await client.threads.getState(thread);
found.next = state.next;
await client.threads.updateState(thread, { values: input("by hand"), asNode: "model" });
found.byHand = texts((await client.threads.getState(thread)).values).at(-1);
found.copied = texts((await client.threads.copy(thread)).values ?? { messages: [] }).length > 0;
found.found = (await client.threads.search({ metadata: { kind: "test" } })).map((row) => row.thread_id === thread);

// The store.
await client.store.putItem(["notes", "ada"], "likes", { what: "tea" });
found.item = (await client.store.getItem(["notes", "ada"], "likes")).value;
found.items = (await client.store.searchItems(["notes"])).items.map((item) => item.key);
found.namespaces = (await client.store.listNamespaces({ prefix: ["notes"] })).namespaces;
await client.store.deleteItem(["notes", "ada"], "likes");
found.noItem = await client.store.getItem(["notes", "ada"], "likes");

// What agent-chat-ui asks for: its own five requests.
async function plain(method, path, body) {
  const headers = { "content-type": "application/json" };
  const answer = await fetch(url + path, { method, headers, body: body && JSON.stringify(body) });
  return answer.ok ? answer.json() : answer.status;
}
found.info = typeof (await plain("GET", "/info"));
const chat = (await plain("POST", "/threads", { metadata: {} })).thread_id;
const chatting = {
  streamMode: ["values", "messages-tuple", "custom"],
  streamSubgraphs: true,
  streamResumable: true,
  onDisconnect: "continue",
};
const message = { id: "of-the-client", type: "human", content: [{ type: "text", text: "chat" }] };
const said = { messages: [message], context: undefined };
const shown = await collected(client.runs.stream(chat, "agent", { ...chatting, input: said }));
found.chat = names(shown);
const states = await client.threads.getHistory(chat, { limit: 10 });
found.kept = states[0].values.messages[0].id;
const regenerated = await collected(
  client.runs.stream(chat, "agent", { ...chatting, input: undefined, checkpoint: states[0].parent_checkpoint }),
);
found.regenerated = texts(regenerated.filter((part) => part.event === "values").at(-1).data).map(([type]) => type);
found.sidebar = (await client.threads.search({ metadata: { graph_id: "agent" }, limit: 100 }))
  .filter((row) => row.thread_id === chat)
  .map((row) => row.values.messages[0].content[0].text);
await collected(client.runs.stream(chat, "agent", { ...chatting, input: { messages: [{ type: "human", content: "mail" }] } }));
const resolved = { ...chatting, input: {}, command: { resume: { decisions: [{ type: "reject", message: "no" }] } } };
found.rejected = texts(
  (await collected(client.runs.stream(chat, "agent", resolved))).filter((part) => part.event === "values").at(-1).data,
).at(-1);

// The second protocol.
const live = client.threads.stream({ assistantId: "agent" });
await live.run.start({ input: input("live") });
const streamed = [];
for await (const each of live.messages) streamed.push(await each.text);
found.live = streamed;
found.output = texts(await live.output).length;
await live.close();
const waiting = client.threads.stream({ assistantId: "agent" });
await waiting.run.start({ input: input("mail") });
for await (const _snapshot of waiting.values);
found.interrupted = waiting.interrupted;
const [{ interruptId, namespace, payload }] = waiting.interrupts;
found.liveQuestion = payload.action_requests[0].args;
await waiting.respondInput({ interrupt_id: interruptId, namespace, response: decisions });
found.liveAnswer = texts(await waiting.output).at(-1)[0];
await waiting.close();

// The end.
await client.threads.delete(thread);
found.deleted = await failure(() => client.threads.get(thread));

console.log(JSON.stringify(found));
