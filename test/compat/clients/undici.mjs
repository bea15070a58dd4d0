// undici with the agent that it offers for proxy variables.
import { EnvHttpProxyAgent, request, setGlobalDispatcher } from 'undici';

setGlobalDispatcher(new EnvHttpProxyAgent({ proxyTunnel: !process.argv[2].startsWith('http:') }));
const { statusCode, headers, body } = await request(process.argv[2]);
console.log(statusCode, JSON.stringify(headers));
console.log(await body.text());
