// An echo server that knows nothing of a mesh. Says who calls first, and pushes one message late.
const { WebSocketServer } = require('ws');

const server = new WebSocketServer({ host: '0.0.0.0', port: Number(process.argv[2]) });
server.on('connection', (socket, request) => {
  socket.send(String(request.headers['x-rondel-principal']));
  socket.on('message', (data, binary) => {
    socket.send(data, { binary });
    if (!binary && data.toString() === 'later') setTimeout(() => socket.send('pushed'), 2000);
  });
});
