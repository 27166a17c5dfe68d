"""Calls grpc_server.py through a sidecar and checks what comes back. Usage: grpc_client.py SIDECAR AUTHORITY"""

import queue
import sys

import grpc

sidecar, authority = sys.argv[1:]
channel = grpc.insecure_channel(sidecar, options=[("grpc.default_authority", authority)])

unary = channel.unary_unary("/test.Loom/Unary")
answer, call = unary.with_call(b"hello", timeout=10, metadata=(("x-sent", "thread"),), wait_for_ready=True)
assert answer == b"answer to hello", answer
assert dict(call.trailing_metadata())["x-seen"] == "thread", call.trailing_metadata()
assert call.code() == grpc.StatusCode.OK
print("unary: ok")

big = b"x" * 3_000_000
assert unary(big, timeout=20) == b"answer to " + big
print("a message of 3 MB: ok")

assert [int(n) for n in channel.unary_stream("/test.Loom/ServerStream")(b"500", timeout=20)] == list(range(500))
print("server stream: ok")

total = channel.stream_unary("/test.Loom/ClientStream")((b"x" * 1000 for _ in range(200)), timeout=20)
assert total == b"200000", total
print("client stream: ok")

# The next message goes out only when the last one's answer is in, so nothing may be held back on the way.
outbox = queue.SimpleQueue()
answers = channel.stream_stream("/test.Loom/Both")(iter(outbox.get, None), timeout=20)
for n in range(50):
    outbox.put(b"%d" % n)
    assert next(answers) == b"echo %d" % n
outbox.put(None)
assert list(answers) == []
print("both ways: ok")


def code_of(request, timeout=10):
    try:
        unary(request, timeout=timeout)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return None


assert code_of(b"missing") == (grpc.StatusCode.NOT_FOUND, "no such thing"), code_of(b"missing")
print("error code: ok")
code, _ = code_of(b"slow", timeout=0.5)
assert code == grpc.StatusCode.DEADLINE_EXCEEDED, code
print("deadline: ok")
try:
    channel.unary_unary("/test.Loom/Nothing")(b"", timeout=10)
    raise SystemExit("an unknown method was answered")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error.code()
print("unknown method: ok")
assert unary(b"again", timeout=10) == b"answer to again"
print("all ok")
