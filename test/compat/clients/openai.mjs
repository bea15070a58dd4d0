import OpenAI from 'openai';

const client = new OpenAI({ maxRetries: 0 });
if (process.argv[2] === 'denied') {
  await client.models.list(); // throws
}
const messages = [{ role: 'user', content: 'hello' }];
const whole = await client.chat.completions.create({ model: 'gpt-compat', messages });
console.log('whole:', whole.choices[0].message.content, JSON.stringify(whole));
let text = '';
for await (const part of await client.chat.completions.create({ model: 'gpt-compat', messages, stream: true })) {
  text += part.choices[0]?.delta?.content ?? '';
  console.log(JSON.stringify(part));
}
console.log('streamed:', text);
