import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';

const client = new Client({ name: 'compat', version: '1' });
const transport = new StreamableHTTPClientTransport(new URL(process.argv[2]));
await client.connect(transport);
console.log(JSON.stringify(await client.listTools()));
console.log(JSON.stringify(await client.callTool({ name: 'whoami', arguments: { question: 'who am I?' } })));
await transport.terminateSession();
await client.close();
