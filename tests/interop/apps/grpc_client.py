"""Every kind of call, trailers, codes, a deadline and a cancellation. Prints one line; fails on any difference."""
import queue
import sys

import grpc

target, principal = sys.argv[1:]
channel = grpc.insecure_channel(target)
reply, call = channel.unary_unary("/t.T/Unary").with_call(b"hi", timeout=5)
assert reply == principal.encode() + b" hi", reply
assert ("x-trailer", "1") in [tuple(pair) for pair in call.trailing_metadata()]
assert list(channel.unary_stream("/t.T/ServerStream")(b"", timeout=5)) == [b"0", b"1", b"2", b"3", b"4"]
parts = iter([b"x" * 1_000_000] * 8)
assert channel.stream_unary("/t.T/ClientStream")(parts, timeout=20) == b"8000000"
asked = queue.Queue()
replies = channel.stream_stream("/t.T/Both")(iter(asked.get, None), timeout=5)
for number in range(3):
    asked.put(b"%d" % number)
    assert next(replies) == b"echo %d" % number
asked.put(None)
assert list(replies) == []
for method, timeout, code in [("Refuse", 5, "FAILED_PRECONDITION"), ("Nothing", 5, "UNIMPLEMENTED"), ("Sleep", 0.5, "DEADLINE_EXCEEDED")]:
    try:
        channel.unary_unary("/t.T/" + method)(b"", timeout=timeout)
        raise SystemExit(method + " succeeded")
    except grpc.RpcError as error:
        assert error.code().name == code, error
left = channel.stream_stream("/t.T/Both")(iter(queue.Queue().get, None))
left.cancel()
assert channel.unary_unary("/t.T/Unary")(b"again", timeout=5).endswith(b" again")
print("4 kinds of call, 8 MB up, trailers, 3 codes, deadline, cancel")
