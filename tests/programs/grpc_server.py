"""A gRPC server without protobuf: generic handlers whose messages are bytes. Usage: grpc_server.py ADDRESS:PORT"""

import sys
import time
from concurrent import futures

import grpc


def unary(request, context):
    if request == b"slow":
        time.sleep(5)
    if request == b"missing":
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
    metadata = dict(context.invocation_metadata())
    context.set_trailing_metadata((("x-seen", metadata.get("x-sent", "nothing")),))
    return b"answer to " + request


def server_stream(request, context):
    for n in range(int(request)):
        yield b"%d" % n


def client_stream(requests, context):
    return b"%d" % sum(len(request) for request in requests)


def both(requests, context):
    for request in requests:
        yield b"echo " + request


HANDLERS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "Both": grpc.stream_stream_rpc_method_handler(both),
}

server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Loom", HANDLERS),))
if server.add_insecure_port(sys.argv[1]) == 0:
    sys.exit(f"{sys.argv[1]} is taken")
server.start()
print("listening", flush=True)
server.wait_for_termination()
