// The ai SDK with three providers: text, streams, objects and forced tools, each chunk checked by its schema.
import assert from 'node:assert/strict'
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText, jsonSchema, Output, streamText, tool } from 'ai'
import { ASKED, KEY, MODEL, SCHEMA, V1, checkLook, did } from './common.mjs'

const providers = {
  'openai-compatible': createOpenAICompatible({ name: 'foveal', baseURL: V1, apiKey: KEY, supportsStructuredOutputs: true })(MODEL),
  'openai chat': createOpenAI({ baseURL: V1, apiKey: KEY }).chat(MODEL),
  'openai responses': createOpenAI({ baseURL: V1, apiKey: KEY }).responses(MODEL),
  anthropic: createAnthropic({ baseURL: V1, apiKey: KEY })(MODEL),
}
for (const [name, model] of Object.entries(providers)) {
  const settings = { model, prompt: ASKED, maxOutputTokens: 300, maxRetries: 0 }
  assert.ok((await generateText({ ...settings, maxOutputTokens: 20 })).usage.outputTokens > 0)
  const stream = streamText({ ...settings, maxOutputTokens: 20, onError: ({ error }) => { throw error } })
  const parts = []
  for await (const part of stream.fullStream) parts.push(part.type)
  assert.equal(parts[0], 'start')
  assert.equal(parts.at(-1), 'finish')
  const look = tool({ description: 'look', inputSchema: jsonSchema(SCHEMA) })
  const called = await generateText({ ...settings, tools: { look }, toolChoice: { type: 'tool', toolName: 'look' } })
  checkLook(called.toolCalls[0].input)
  if (name !== 'anthropic') {
    checkLook((await generateText({ ...settings, output: Output.object({ schema: jsonSchema(SCHEMA) }) })).output)
  }
  did(name)
}
