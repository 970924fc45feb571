"""A gRPC server without generated code: one method of each kind of call."""
import sys
import time
from concurrent import futures

import grpc


class Calls(grpc.GenericRpcHandler):
    def service(self, details):
        def unary(request, context):
            context.set_trailing_metadata((("x-trailer", "1"),))
            metadata = dict(context.invocation_metadata())
            return metadata.get("x-rondel-principal", "").encode() + b" " + request

        def server_stream(request, context):
            yield from (b"%d" % number for number in range(5))

        def client_stream(requests, context):
            return b"%d" % sum(len(request) for request in requests)

        def both(requests, context):
            for request in requests:
                yield b"echo " + request

        def refuse(request, context):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "refused by the application")

        def sleep(request, context):
            time.sleep(3)
            return b""

        def check(request, context):
            # grpc.health.v1: a request of one name, an answer of one number, of which 1 is SERVING and 2 is not.
            service = request[2:].decode()
            if service == "absent":
                context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
            return b"\x08\x02" if service == "sick" else b"\x08\x01"

        return {
            "Check": grpc.unary_unary_rpc_method_handler(check),
            "Unary": grpc.unary_unary_rpc_method_handler(unary),
            "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
            "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
            "Both": grpc.stream_stream_rpc_method_handler(both),
            "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
            "Sleep": grpc.unary_unary_rpc_method_handler(sleep),
        }.get(details.method.rsplit("/", 1)[-1])


server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((Calls(),))
server.add_insecure_port(f"0.0.0.0:{sys.argv[1]}")
server.start()
server.wait_for_termination()
