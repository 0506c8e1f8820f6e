// The openai SDK for node: chats, stream helpers, tools, responses, completions, errors.
import assert from 'node:assert/strict'
import OpenAI from 'openai'
import { ASKED, KEY, MODEL, SCHEMA, V1, checkLook, did } from './common.mjs'

const client = new OpenAI({ baseURL: V1, apiKey: KEY, maxRetries: 0 })
const messages = [{ role: 'user', content: ASKED }]
const tools = [{ type: 'function', function: { name: 'look', parameters: SCHEMA, strict: true } }]

const plain = await client.chat.completions.create({ model: MODEL, messages, max_tokens: 10 })
assert.ok(plain.usage.total_tokens > 0)
did('chat')

const runner = client.chat.completions.stream({ model: MODEL, messages, tools, tool_choice: 'required', max_tokens: 300 })
const final = await runner.finalChatCompletion()
checkLook(JSON.parse(final.choices[0].message.tool_calls[0].function.arguments))
assert.equal(final.choices[0].finish_reason, 'tool_calls')
did('stream helper with a forced tool')

const response = client.responses.stream({ model: MODEL, input: ASKED, max_output_tokens: 20 })
let kinds = []
for await (const event of response) kinds.push(event.type)
assert.equal(kinds[0], 'response.created')
assert.match(kinds.at(-1), /^response\.(completed|incomplete)$/)
assert.ok((await response.finalResponse()).id)
did('responses stream')

const text = await client.completions.create({ model: MODEL, prompt: 'def f(', max_tokens: 5, logprobs: 1 })
assert.equal(text.choices[0].logprobs.tokens.length, 5)
did('completions')

await assert.rejects(client.chat.completions.create({ model: 'no', messages }), OpenAI.NotFoundError)
await assert.rejects(client.chat.completions.create({ model: MODEL, messages: [] }), OpenAI.BadRequestError)
did('errors')
