"""grpc's own core as server and as client: `serve PORT_FILE IP...`, `call TARGET...`,
`call-beside-envoy TARGET...`, `chat TARGET MESSAGES` or `cut TARGET FOLDER`; a target is
PROXY=AUTHORITY, or PROXY=AUTHORITY=FOLDER for TLS with the folder's server.crt, or
PROXY=AUTHORITY=FOLDER=mutual to show its client.crt as well.

The client asks every target for everything a call can be, and ends with an error if an answer is
not what a direct connection would have given."""

import os, sys, threading, time
from concurrent import futures
import grpc

LARGE = 8 << 20
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
BINARY = bytes(range(256))
DETAILS = "not here: 100% \u00fcber\nline"
PATIENCE = 20
CODES = {code.value[0]: code for code in grpc.StatusCode}

# --- server ---------------------------------------------------------------------------------

ended, changed = [], threading.Condition()


def note_end(name):
    def note():
        with changed:
            ended.append(name)
            changed.notify_all()
    return note


def unary(request, context):
    for key, value in context.invocation_metadata():
        if key == "ask-bin":
            assert value == BINARY, value
            context.send_initial_metadata((("head-bin", value), ("head", "first"), ("head", "second")))
            context.set_trailing_metadata((("tail-bin", value), ("tail", "last")))
    return request


def repeat(request, context):
    for index in range(int(request)):
        yield str(index).encode()


collecting = []


def collect(requests, context):
    collecting.append(context)
    context.add_callback(lambda: collecting.remove(context))
    return str(sum(len(request) for request in requests)).encode()


def is_collecting(request, context):
    return b"%d" % len(collecting)


def feed(request, context):
    """Messages until the call ends."""
    for index in range(1 << 30):
        yield str(index).encode()
        time.sleep(0.01)
        if not context.is_active():
            return


def chat(requests, context):
    context.send_initial_metadata((("ready", "yes"),))
    count = 0
    for request in requests:
        count += 1
        yield request.upper()
    # After the client's half is closed.
    yield b"goodbye after %d" % count


def fail(request, context):
    context.set_trailing_metadata((("why-bin", BINARY),))
    context.abort(CODES[int(request)], DETAILS)


def fail_late(request, context):
    yield b"something"
    context.abort(grpc.StatusCode.DATA_LOSS, DETAILS)


def wait(requests, context):
    """Answers once, and then not before its caller has left; says how much time it was given."""
    left = context.time_remaining()
    name = dict(context.invocation_metadata())["call"]
    context.add_callback(note_end(name))
    yield b"%d" % (left if left is not None and left < 1 << 30 else -1)
    for _ in requests:
        pass
    while context.is_active():
        time.sleep(0.005)


def has_ended(request, context):
    with changed:
        return b"%d" % changed.wait_for(lambda: request.decode() in ended, PATIENCE)


def serve(port_file, *ips):
    handler = lambda kind, function: getattr(grpc, kind + "_rpc_method_handler")(function)
    methods = {
        "Unary": handler("unary_unary", unary),
        "Repeat": handler("unary_stream", repeat),
        "Collect": handler("stream_unary", collect),
        "Collecting": handler("unary_unary", is_collecting),
        "Feed": handler("unary_stream", feed),
        "Chat": handler("stream_stream", chat),
        "Fail": handler("unary_unary", fail),
        "FailLate": handler("unary_stream", fail_late),
        "Wait": handler("stream_stream", wait),
        "HasEnded": handler("unary_unary", has_ended),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Core", methods),))
    port = 0
    for ip in ips:
        port = server.add_insecure_port("%s:%d" % (ip, port))
    server.start()
    with open(port_file + ".new", "w") as file:
        file.write(str(port))
    os.rename(port_file + ".new", port_file)
    server.wait_for_termination()


# --- client ---------------------------------------------------------------------------------


class Calls:
    # The server's clock may run out first. Its reset says CANCEL, which our core takes for the
    # deadline; Envoy makes another code of it.
    late = [grpc.StatusCode.DEADLINE_EXCEEDED]

    def __init__(self, salt, proxy, authority, folder=None, mutual=None):
        options = OPTIONS + [("grpc.default_authority", authority)]
        if folder is None:
            self.channel = grpc.insecure_channel(proxy, options=options)
        else:
            def read(name):
                with open(os.path.join(folder, name), "rb") as file:
                    return file.read()
            own = (read("client.key"), read("client.crt")) if mutual else ()
            keys = grpc.ssl_channel_credentials(read("server.crt"), *own)
            options.append(("grpc.ssl_target_name_override", authority))
            self.channel = grpc.secure_channel(proxy, keys, options=options)
        self.salt = salt

    def method(self, kind, name):
        return getattr(self.channel, kind)("/test.Core/" + name)

    def until_ready(self):
        assert self.method("unary_unary", "Unary")(b"?", wait_for_ready=True, timeout=PATIENCE) == b"?"

    def modes(self):
        assert self.method("unary_unary", "Unary")(b"", timeout=PATIENCE) == b""
        repeat = self.method("unary_stream", "Repeat")
        assert [int(reply) for reply in repeat(b"1000", timeout=PATIENCE)] == list(range(1000))
        assert list(repeat(b"0", timeout=PATIENCE)) == []
        collect = self.method("stream_unary", "Collect")
        assert collect((b"x" * size for size in range(300)), timeout=PATIENCE) == b"44850"
        assert collect(iter(()), timeout=PATIENCE) == b"0"

    def each_message_passes_at_once(self):
        """Each is sent only when the answer to the one before is here: nothing is held back."""
        said, heard = threading.Semaphore(0), iter([b"one", b"two", b"three"])
        def requests():
            for message in heard:
                assert said.acquire(timeout=PATIENCE)
                yield message
            assert said.acquire(timeout=PATIENCE)
        call = self.method("stream_stream", "Chat")(requests(), timeout=PATIENCE)
        # The head comes before any message in either direction.
        assert dict(call.initial_metadata())["ready"] == "yes"
        for expect in [b"ONE", b"TWO", b"THREE"]:
            said.release()
            assert next(call) == expect
        said.release()
        assert list(call) == [b"goodbye after 3"]
        assert call.code() == grpc.StatusCode.OK

    def large_messages(self):
        data = b"y" * LARGE
        assert self.method("unary_unary", "Unary")(data, timeout=PATIENCE) == data
        call = self.method("stream_stream", "Chat")(iter([data, data]), timeout=PATIENCE)
        assert [len(reply) for reply in call][:2] == [LARGE, LARGE]
        packed = self.method("unary_unary", "Unary")(
            data, timeout=PATIENCE, compression=grpc.Compression.Gzip)
        assert packed == data

    def metadata(self):
        reply, call = self.method("unary_unary", "Unary").with_call(
            b"hi", metadata=(("ask-bin", BINARY),), timeout=PATIENCE)
        head, tail = call.initial_metadata(), call.trailing_metadata()
        assert reply == b"hi"
        assert dict(head)["head-bin"] == BINARY and dict(tail)["tail-bin"] == BINARY
        assert [value for key, value in head if key == "head"] == ["first", "second"], head
        assert dict(tail)["tail"] == "last"

    def every_status(self):
        for number, code in CODES.items():
            if number == 0:
                continue
            try:
                self.method("unary_unary", "Fail")(str(number).encode(), timeout=PATIENCE)
                raise AssertionError(code)
            except grpc.RpcError as error:
                assert (error.code(), error.details()) == (code, DETAILS), error
                assert dict(error.trailing_metadata())["why-bin"] == BINARY
        call = self.method("unary_stream", "FailLate")(b"", timeout=PATIENCE)
        assert next(call) == b"something"
        try:
            next(call)
            raise AssertionError("went on")
        except grpc.RpcError as error:
            assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, DETAILS), error

    def start_waiting(self, name, timeout):
        hold = threading.Event()
        def requests():
            yield b"first"
            hold.wait(PATIENCE)
        call = self.method("stream_stream", "Wait")(
            requests(), metadata=(("call", name),), timeout=timeout)
        left = int(next(call))
        return call, left, hold

    def expect_ended(self, name):
        assert self.method("unary_unary", "HasEnded")(name.encode(), timeout=PATIENCE * 2) == b"1", name

    def cancellation(self):
        name = "cancelled" + self.salt
        call, left, hold = self.start_waiting(name, None)
        assert left == -1, left
        call.cancel()
        hold.set()
        assert call.code() == grpc.StatusCode.CANCELLED
        self.expect_ended(name)

    def deadline(self):
        name = "late" + self.salt
        call, left, hold = self.start_waiting(name, 3)
        assert 0 <= left <= 3, left
        try:
            next(call)
            raise AssertionError("went on")
        except grpc.RpcError as error:
            assert error.code() in self.late, error
        hold.set()
        self.expect_ended(name)

    def many_at_once(self):
        unary, repeat = self.method("unary_unary", "Unary"), self.method("unary_stream", "Repeat")
        calls = [unary.future(str(index).encode(), timeout=PATIENCE) for index in range(200)]
        streams = [repeat(b"20", timeout=PATIENCE) for _ in range(20)]
        assert [int(call.result()) for call in calls] == list(range(200))
        assert all(len(list(stream)) == 20 for stream in streams)

    def check(self):
        self.until_ready()
        for ask in [
            self.modes, self.each_message_passes_at_once, self.large_messages, self.metadata,
            self.every_status, self.cancellation, self.deadline, self.many_at_once,
        ]:
            ask()
            print("ok", ask.__name__, self.salt, flush=True)


def calls_to(target):
    return Calls("-" + target, *target.split("="))


def check(targets):
    # Side by side: most of it is waiting.
    with futures.ThreadPoolExecutor(len(targets)) as pool:
        for target, checked in [(target, pool.submit(calls_to(target).check)) for target in targets]:
            print("target", target, flush=True)
            checked.result()


def chat_once(target, messages):
    chat = calls_to(target).method("stream_stream", "Chat")
    replies = list(chat((b"m" for _ in range(messages)), timeout=PATIENCE))
    assert len(replies) == messages + 1


def cut(target, folder):
    """Leaves calls open until something on their way ends them, and says how each ended."""
    calls = calls_to(target)
    calls.until_ready()
    hold = threading.Event()

    def requests(first):
        yield from first
        hold.wait()

    chat = calls.method("stream_stream", "Chat")(requests([b"m"]))
    assert next(chat) == b"M"
    feed = calls.method("unary_stream", "Feed")(b"")
    assert next(feed) == b"0"
    # The head of the answer comes with the first message, and there is none.
    collect = calls.method("stream_unary", "Collect").future(requests([b"m"]))
    deadline = time.monotonic() + PATIENCE
    while calls.method("unary_unary", "Collecting")(b"", timeout=PATIENCE) != b"1":
        assert time.monotonic() < deadline
    with open(os.path.join(folder, "open.new"), "w"):
        pass
    os.rename(os.path.join(folder, "open.new"), os.path.join(folder, "open"))
    for call in [chat, feed]:
        try:
            while True:
                next(call)
        except (grpc.RpcError, StopIteration):
            pass
    collect.exception()
    for name, call in [("chat", chat), ("feed", feed), ("collect", collect)]:
        print(name, call.code().name, call.details(), flush=True)
    # Its threads wait for ever.
    os._exit(0)


def main(role, *rest):
    if role == "serve":
        serve(*rest)
    elif role in ("call", "call-beside-envoy"):
        if role == "call-beside-envoy":
            Calls.late.append(grpc.StatusCode.INTERNAL)
        check(rest)
    elif role == "cut":
        cut(*rest)
    else:
        chat_once(rest[0], int(rest[1]))


main(*sys.argv[1:])
