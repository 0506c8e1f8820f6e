// The anthropic SDK for node: messages, stream helper, tools, token counts, errors.
import assert from 'node:assert/strict'
import Anthropic from '@anthropic-ai/sdk'
import { ASKED, KEY, MODEL, SCHEMA, URL_, checkLook, did } from './common.mjs'

const client = new Anthropic({ baseURL: URL_, apiKey: KEY, maxRetries: 0 })
const messages = [{ role: 'user', content: ASKED }]
const plain = await client.messages.create({ model: MODEL, max_tokens: 10, messages })
assert.equal(plain.type, 'message')
did('messages')

const stream = client.messages.stream({
  model: MODEL, max_tokens: 300, messages, tools: [{ name: 'look', input_schema: SCHEMA }], tool_choice: { type: 'any' },
})
const final = await stream.finalMessage()
assert.equal(final.stop_reason, 'tool_use')
checkLook(final.content.find(block => block.type === 'tool_use').input)
did('stream helper with a forced tool')

assert.ok((await client.messages.countTokens({ model: MODEL, messages })).input_tokens > 3)
did('count_tokens')
await assert.rejects(client.messages.create({ model: 'no', max_tokens: 5, messages }), Anthropic.NotFoundError)
did('errors')
