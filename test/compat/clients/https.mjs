// node's http and https modules, for base URLs and for the proxy.
import http from 'node:http';
import https from 'node:https';

// What attache run loads into node must not change what programs rely on.
if (!(https.globalAgent instanceof https.Agent) || !http.Agent({ keepAlive: true }).keepAlive) throw new Error('agents are broken');

const url = new URL(process.argv[2]);
const res = await new Promise((resolve, reject) => {
  (url.protocol === 'http:' ? http : https).get(url, resolve).on('error', reject);
});
console.log(res.statusCode, JSON.stringify(res.headers));
for await (const chunk of res) process.stdout.write(chunk);
