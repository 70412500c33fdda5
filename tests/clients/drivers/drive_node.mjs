// openai-node and Vercel's AI SDK: whole and streamed; prints what came as JSON.
import OpenAI from "openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
const [url] = process.argv.slice(2);
const [name, sum, weather, degrees] = [
  "Qwen3-0.6B", "What is 123 + 456?", "What is the weather in Paris?", '{"degrees": 21}',
];
const client = new OpenAI({ baseURL: url, apiKey: "EMPTY", maxRetries: 0 });
const body = { model: name, temperature: 0, messages: [{ role: "user", content: sum }], enable_thinking: true };
const provider = createOpenAICompatible({ name: "edgeqwen", baseURL: url, apiKey: "EMPTY", includeUsage: true });
const ask = { model: provider(name), temperature: 0, maxRetries: 0 };
const thinking = (enabled) => ({ edgeqwen: { enable_thinking: enabled } });

const scenes = {
  async openai_create() {
    const { message, finish_reason } = (await client.chat.completions.create(body)).choices[0];
    return { thinking: message.reasoning_content, content: message.content, finish: finish_reason };
  },
  async openai_stream() {
    const told = { thinking: "", content: "" };
    for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
      for (const { delta, finish_reason } of chunk.choices) {
        told.thinking += delta.reasoning_content ?? "";
        told.content += delta.content ?? "";
        told.finish = finish_reason ?? told.finish;
      }
    }
    return told;
  },
  async openai_helper() {
    const final = await client.chat.completions.stream(body).finalChatCompletion();
    return { content: final.choices[0].message.content, finish: final.choices[0].finish_reason };
  },
  async ai_generate() {
    const told = await generateText({ ...ask, prompt: sum, providerOptions: thinking(true) });
    return { thinking: told.reasoningText, content: told.text, finish: told.finishReason };
  },
  async ai_stream() {
    const told = streamText({ ...ask, prompt: sum, providerOptions: thinking(true) });
    const usage = await told.usage;
    const tokens = [usage.outputTokens, usage.outputTokenDetails?.reasoningTokens ?? usage.reasoningTokens];
    return { thinking: await told.reasoningText, content: await told.text, finish: await told.finishReason, tokens };
  },
  async ai_tools() {
    const asked = [];
    const get_weather = tool({
      description: "Get the weather",
      inputSchema: jsonSchema({ type: "object", properties: { city: { type: "string" } }, required: ["city"] }),
      execute: async (input) => {
        asked.push(input);
        return degrees;
      },
    });
    const told = await generateText({
      ...ask, prompt: weather, tools: { get_weather }, stopWhen: stepCountIs(3), providerOptions: thinking(true),
    });
    return { asked, content: told.text, steps: told.steps.length };
  },
};

const told = {};
for (const [scene, run] of Object.entries(scenes)) {
  told[scene] = await run().catch((error) => ({ error: error.stack }));
}
console.log("\n" + JSON.stringify(told));
