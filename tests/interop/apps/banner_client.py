"""An SMTP client of the standard library, and a client that says nothing for a while after the banner."""
import smtplib
import socket
import sys
import time

host, port = sys.argv[1], int(sys.argv[2])
mail = smtplib.SMTP(host, port, local_hostname="client", timeout=5)
assert mail.docmd("NOOP")[0] == 250
assert mail.quit()[0] == 221
began = time.monotonic()
quiet = socket.create_connection((host, port), timeout=5)
assert quiet.recv(100).startswith(b"220 ")
waited = time.monotonic() - began
assert waited < 2, waited
time.sleep(1)
quiet.sendall(b"QUIT\r\n")
assert quiet.recv(100).startswith(b"221 ")
print("banner before the client's first byte, no waiting for detection")
