// The ws package. It opens its own sockets, so that the proxy needs an agent.
import http from 'node:http';
import https from 'node:https';
import WebSocket from 'ws';

const url = process.argv[2];
const options = { agent: url.startsWith('wss:') ? new https.Agent() : new http.Agent() };
const socket = new WebSocket(url, options);
socket.on('unexpected-response', (req, res) => {
  let body = '';
  res.on('data', (chunk) => { body += chunk; });
  res.on('end', () => { console.error(`Unexpected server response: ${res.statusCode}`); console.error(body); process.exit(1); });
});
socket.on('error', (e) => { console.error(e.message); process.exit(1); });
socket.on('upgrade', (res) => console.log(JSON.stringify(res.headers)));
socket.on('open', () => socket.send('hello'));
socket.on('message', (data) => {
  console.log(String(data));
  if (String(data) === 'echo: hello') socket.send(Buffer.alloc(70000, 'x'));
  else { console.log('bytes', data.length); socket.close(1000); }
});
socket.on('close', (code) => { console.log('closed', code); });
