// Text, a large binary message, a push after silence, ping and pong, and the close code. Prints one line; exits 1 on any difference.
const WebSocket = require('ws');
const assert = require('assert');
const crypto = require('crypto');

const [url, principal] = process.argv.slice(2);
const socket = new WebSocket(url);
const messages = [];
let notify = () => {};
socket.on('message', (data, binary) => { messages.push({ data, binary }); notify(); });
const next = async (count) => { while (messages.length < count) await new Promise((resolve) => { notify = resolve; }); };
setTimeout(() => { console.log(`only ${messages.length} messages`); process.exit(1); }, 10000).unref();

socket.on('open', async () => {
  await next(1);
  assert.equal(messages[0].data.toString(), principal);
  const large = crypto.randomBytes(1 << 20);
  socket.send('text');
  socket.send(large);
  socket.send('later');
  await next(5);
  assert.equal(messages[1].data.toString(), 'text');
  assert(messages[2].binary && messages[2].data.equals(large));
  assert.equal(messages[4].data.toString(), 'pushed');
  socket.once('pong', () => socket.close(4001, 'bye'));
  socket.ping();
});
socket.on('close', (code, reason) => {
  assert.equal(`${code} ${reason}`, '4001 bye');
  console.log('text, 1 MiB binary, push after 2 s, ping, close 4001');
  process.exit(0);
});
socket.on('error', (error) => { console.log(error.message); process.exit(1); });
