import Anthropic from '@anthropic-ai/sdk';

const client = new Anthropic({ maxRetries: 0 });
if (process.argv[2] === 'denied') {
  await client.models.list(); // throws
}
const ask = { model: 'claude-compat', max_tokens: 16, messages: [{ role: 'user', content: 'hello' }] };
const whole = await client.messages.create(ask);
console.log('whole:', whole.content[0].text, JSON.stringify(whole));
let text = '';
for await (const event of await client.messages.create({ ...ask, stream: true })) {
  if (event.type === 'content_block_delta') text += event.delta.text;
  console.log(JSON.stringify(event));
}
console.log('streamed:', text);
