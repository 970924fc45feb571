"""Speaks first, as SMTP does (RFC 5321 section 3.1)."""
import socketserver
import sys


class Mail(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"220 mail.example ready\r\n")
        for line in self.rfile:
            word = line.strip().upper()
            if word.startswith(b"QUIT"):
                self.wfile.write(b"221 bye\r\n")
                return
            self.wfile.write(b"250 " + word[:4] + b"\r\n")


socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("0.0.0.0", int(sys.argv[1])), Mail).serve_forever()
