"""Carries plaintext connections over mutual TLS with an SVID, as HTTP/2: for tools that hold no client certificate."""
import asyncio
import ssl
import sys

port, host, target, svid, key, bundle = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.minimum_version = ssl.TLSVersion.TLSv1_3
context.load_cert_chain(svid, key)
context.load_verify_locations(bundle)
context.set_alpn_protocols(["h2"])


async def carry(source, sink):
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()


async def serve(near_read, near_write):
    far_read, far_write = await asyncio.open_connection(host, int(target), ssl=context)
    await asyncio.gather(carry(near_read, far_write), carry(far_read, near_write))


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(port))
    await server.serve_forever()


asyncio.run(main())
