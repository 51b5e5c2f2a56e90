# A kernel that does what no kernel should. It speaks the wire protocol by itself
# and misbehaves, as its first argument says, when it is told to run code; the
# second is the connection file.
import hashlib
import hmac
import json
import os
import socket
import struct
import sys
import threading
import time

mode = sys.argv[1]
info = json.load(open(sys.argv[2]))
outputs = []


def frame(body, more=False, flags=0):
    flags |= more
    if len(body) > 255:
        return struct.pack(">BQ", flags | 2, len(body)) + body
    return struct.pack("BB", flags, len(body)) + body


def exactly(conn, n):
    data = b""
    while len(data) < n:
        more = conn.recv(n - len(data))
        if not more:
            raise SystemExit
        data += more
    return data


def receive(conn):
    frames = []
    while True:
        flags, size = exactly(conn, 2)
        if flags & 2:
            size = struct.unpack(">Q", bytes([size]) + exactly(conn, 7))[0]
        frames.append(exactly(conn, size))
        if not flags & 1:
            return frames


def message(parent, kind, content, key=None):
    header = {"msg_id": "x", "msg_type": kind, "session": "s", "username": "u", "date": "", "version": "5.3"}
    parts = [json.dumps(p).encode() for p in (header, parent, {}, content)]
    mac = hmac.new((key or info["key"]).encode(), b"".join(parts), hashlib.sha256)
    frames = [b"<IDS|MSG>", mac.hexdigest().encode()] + parts
    return b"".join(frame(f, i < len(frames) - 1) for i, f in enumerate(frames))


def publish(parent, kind, content, **options):
    for conn in outputs:
        conn.sendall(message(parent, kind, content, **options))


def misbehave(conn, parent):
    publish(parent, "status", {"execution_state": "busy"})
    text = {"name": "stdout", "text": "said by %d\n" % os.getuid() if mode == "user" else "said\n"}
    publish(parent, "stream", text)
    reply = message(parent, "execute_reply", {"status": "ok", "execution_count": 1})
    if mode == "forged":
        publish(parent, "stream", {"name": "stdout", "text": "forged\n"}, key="other")
    elif mode == "shapes":
        for kind in ("stream", "status", "display_data", "execute_result", "error", "execute_input", "nothing", ""):
            for content in ([], {}, {"data": []}, {"data": {"text/plain": 5}}, {"name": 1, "text": []}, {"traceback": "x"}, {"execution_state": {}}):
                publish(parent, kind, content)
    elif mode == "huge":
        outputs[0].sendall(struct.pack(">BQ", 3, (1 << 63) - 1) + b"x")
    elif mode == "garbage":
        outputs[0].sendall(b"\xff" * 1000)
    elif mode == "parts":
        outputs[0].sendall(frame(b"", True) * 100000 + frame(b""))
    elif mode == "closes":
        outputs[0].shutdown(socket.SHUT_RDWR)
        time.sleep(60)
    elif mode == "asks":
        conn_in[0].sendall(message(parent, "input_request", {"prompt": "name? ", "password": False}))
        interrupted.wait()
        reply = message(parent, "execute_reply", {"status": "error", "ename": "Interrupted", "evalue": "v", "traceback": ["\x1b[31mred\x1b[0m"]})
    elif mode == "silent":
        while True:
            time.sleep(60)
    elif mode == "flood":
        while True:
            publish(parent, "stream", text)
    elif mode == "lost":
        conn.sendall(reply)
        return
    elif mode == "twice":
        conn.sendall(reply)
        publish(parent, "status", {"execution_state": "idle"})
        publish(parent, "stream", text)
    elif mode == "stderr":
        os.write(2, b"last words\n")
        os._exit(9)
    publish(parent, "status", {"execution_state": "idle"})
    conn.sendall(reply)


conn_in = []
interrupted = threading.Event()


def serve(channel, conn):
    kind = b"PUB" if channel == "iopub" else b"ROUTER"
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    conn.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48))
    exactly(conn, 64)
    conn.sendall(frame(ready, flags=4))
    receive(conn)
    if channel == "stdin":
        conn_in.append(conn)
    while True:
        frames = receive(conn)
        if channel == "iopub":
            outputs.append(conn)
            publish({}, "status", {"execution_state": "starting"})
            continue
        header = json.loads(frames[2])
        if header["msg_type"] == "kernel_info_request":
            conn.sendall(message(header, "kernel_info_reply", {"status": "ok"}))
        elif header["msg_type"] == "interrupt_request":
            interrupted.set()
            conn.sendall(message(header, "interrupt_reply", {"status": "ok"}))
        elif header["msg_type"] == "execute_request":
            misbehave(conn, header)


def listen(channel):
    port = info[channel + "_port"]
    if info["transport"] == "ipc":
        server = socket.socket(socket.AF_UNIX)
        server.bind("%s-%d" % (info["ip"], port))
        server.listen()
    else:
        server = socket.create_server((info["ip"], port))
    while True:
        threading.Thread(target=serve, args=(channel, server.accept()[0]), daemon=True).start()


for name in ("shell", "control", "stdin", "iopub"):
    threading.Thread(target=listen, args=(name,), daemon=True).start()
while True:
    time.sleep(60)
