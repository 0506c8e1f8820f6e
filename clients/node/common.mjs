// What every script of a client needs: where the server is, and a word for each thing that went well.
import assert from 'node:assert/strict'

export const URL_ = process.env.FOVEAL_URL
export const V1 = `${URL_}/v1`
export const KEY = process.env.FOVEAL_KEY
export const MODEL = process.env.FOVEAL_MODEL
export const ASKED = 'Look at line 3 of a.py.'
export const SCHEMA = {
  type: 'object',
  properties: { path: { enum: ['a.py', 'b.py'] }, line: { type: 'integer', minimum: 1, maximum: 99 } },
  required: ['path', 'line'],
  additionalProperties: false,
}

export function checkLook(said) {
  assert.deepEqual(Object.keys(said).sort(), ['line', 'path'])
  assert.ok(['a.py', 'b.py'].includes(said.path) && said.line >= 1 && said.line <= 99, JSON.stringify(said))
}

export const did = what => console.log(`ok ${what}`)
