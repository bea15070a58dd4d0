// Fetch the URL with an agent of the program's own, as the AWS SDK does.
const https = require('node:https');
const agent = new https.Agent({ keepAlive: true });
const request = https.get(process.argv[2], { agent, timeout: 20000 }, (answer) => {
  answer.resume();
  answer.on('end', () => process.exit(0));
});
request.on('timeout', () => request.destroy(new Error('timed out')));
request.on('error', (error) => {
  console.error(String(error), error.code ?? '');
  process.exit(1);
});
