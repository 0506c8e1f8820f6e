// The MCP SDK for node over streamable HTTP.
import assert from 'node:assert/strict'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { KEY, URL_, did } from './common.mjs'

const client = new Client({ name: 'check', version: '1' })
const headers = { authorization: `Bearer ${KEY}` }
await client.connect(new StreamableHTTPClientTransport(new URL(`${URL_}/mcp`), { requestInit: { headers } }))
const { tools } = await client.listTools()
assert.ok(tools.some(each => each.name === 'recall'))
did(`${tools.length} tools`)
assert.ok(!(await client.callTool({ name: 'memories', arguments: {} })).isError)
assert.ok((await client.callTool({ name: 'recall', arguments: { memory: 'there is none', cue: 'x' } })).isError)
did('calls and errors')
await client.close()
