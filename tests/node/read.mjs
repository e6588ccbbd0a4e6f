// Reads streams through the official Node SDK, as applications do, and says what became of them.
//
//   node read.mjs < jobs.json
//
// jobs: {package, baseURL, users: [...]}. Prints one JSON object: user -> {text, error}, where error
// is the name of what was raised, or "". Nothing is retried: what one answer does is the question.

import { text } from "node:stream/consumers";

const AT_ONCE = 8;

const { package: name, baseURL, users } = JSON.parse(await text(process.stdin));
const { default: OpenAI } = await import(name);
const client = new OpenAI({ baseURL, apiKey: "sk-of-the-caller", maxRetries: 0 });

async function read(user) {
  let said = "";
  try {
    const stream = await client.chat.completions.create({
      model: "gpt-4o-mini",
      messages: [{ role: "user", content: "Hi" }],
      stream: true,
      user,
    });
    for await (const chunk of stream) said += chunk.choices[0]?.delta?.content ?? "";
  } catch (error) {
    return { text: said, error: error.constructor.name, code: error.code ?? null };
  }
  return { text: said, error: "", code: null };
}

const heard = {};
const waiting = users.values();
async function caller() {
  for (const user of waiting) heard[user] = await read(user);
}
await Promise.all(Array.from({ length: AT_ONCE }, caller));
console.log(JSON.stringify(heard));
