// The same agent in JavaScript, with fetch and nothing else. Like the vendors'
// SDKs it takes an API's address from *_BASE_URL where that is set: Node older
// than 22.21 cannot be told of a proxy.
import fs from 'node:fs';

const at = (name) => process.env[`${name.toUpperCase()}_BASE_URL`] ?? `https://${name}.attache.example`;

async function show(method, url, options = {}) {
  const answer = await fetch(url, { method, ...options });
  const text = await answer.text();
  if (process.env.AGENT_TRANSCRIPT) {
    const line = JSON.stringify([method, url, answer.status, Object.fromEntries(answer.headers), text]);
    fs.appendFileSync(process.env.AGENT_TRANSCRIPT, `${line}\n`);
  }
  const problem = answer.headers.get('content-type')?.includes('problem+json');
  console.log(`${method.padEnd(4)} ${url}\n     ${answer.status} ${problem ? JSON.parse(text).detail : text.trim()}`);
  return answer.ok;
}

const ok = [
  await show('GET', `${at('tickets')}/v1/tickets/7`),
  await show('GET', `${at('reports')}/v1/summary`),
  await show('POST', `${at('notes')}/v1/notes`, {
    headers: { 'X-Api-Key': process.env.NOTES_API_KEY ?? 'none', 'Content-Type': 'application/json' },
    body: JSON.stringify({ text: 'ticket 7 is about the printer' }),
  }),
];
process.exitCode = ok.every(Boolean) ? 0 : 1;
