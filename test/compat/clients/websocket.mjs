// node's own WebSocket.
const socket = new WebSocket(process.argv[2]);
socket.onopen = () => socket.send('hello');
socket.onerror = (e) => { console.error('error:', e.message || e.error?.message || e.type); process.exit(1); };
socket.onmessage = (e) => { console.log(e.data); socket.close(1000); };
socket.onclose = (e) => console.log('closed', e.code);
