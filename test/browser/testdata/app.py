"""An application that uses what browsers offer, and remembers what it was asked."""

import base64
import hashlib
import http.server
import json
import struct
import sys
import threading
import urllib.parse

PAGE = """<!doctype html><html><head><meta charset="utf-8"><title>%(title)s</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/static/style.css">
<link rel="stylesheet" href="static/relative.css">
</head><body><h1 id="title">%(title)s</h1>
<img id="image" src="/static/image.svg" alt="">
<form id="login" action="/login?next=/welcome" method="post"><input name="user" value="ann"><button id="go">Log in</button></form>
<form id="upload" action="/api/echo" method="post" enctype="multipart/form-data"><input type="file" name="file" id="file"></form>
<a id="save" href="/big" download>Save</a>
<script src="/static/app.js"></script>
<script type="module" src="static/module.js"></script>
<script>
if (parent !== window) addEventListener('load', async () => {
  const style = getComputedStyle(document.querySelector('#title'));
  parent.postMessage({color: style.color, indent: style.textIndent, classic: !!window.classic, module: window.module || 0,
    status: (await fetch('/api/echo')).status}, '*');
});
</script>
</body></html>"""

FILES = {
    "/static/style.css": ("text/css", "#title { color: rgb(1, 2, 3) }"),
    "/static/relative.css": ("text/css", "#title { text-indent: 7px }"),
    "/static/image.svg": ("image/svg+xml", '<svg xmlns="http://www.w3.org/2000/svg" width="11" height="5"/>'),
    "/static/app.js": ("text/javascript", "window.classic = true"),
    "/static/module.js": ("text/javascript", "import {x} from './more.js'; window.module = x"),
    "/static/more.js": ("text/javascript", "export const x = 42"),
    "/sw.js": ("text/javascript", """
self.addEventListener('install', e => self.skipWaiting());
self.addEventListener('activate', e => e.waitUntil(clients.claim()));
self.addEventListener('fetch', e => {
  if (new URL(e.request.url).pathname === '/from-worker') e.respondWith(new Response('worker'));
});"""),
}
BLOCK = hashlib.sha256(b"paddock").digest() * 32768  # 1 MiB
BIG = 50

seen, lock = [], threading.Lock()
acknowledged, changed = {}, threading.Condition()


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, body, kind="application/json", status=200, headers=()):
        if isinstance(body, str):
            body = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = b""
            while True:
                size = int(self.rfile.readline(), 16)
                parts += self.rfile.read(size)
                self.rfile.readline()
                if not size:
                    return parts
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def serve(self):
        path, _, query = self.path.partition("?")
        args = dict(urllib.parse.parse_qsl(query))
        body = self.body()
        headers = {k.lower(): v for k, v in self.headers.items()}
        if path != "/seen":
            with lock:
                seen.append({"method": self.command, "path": self.path, "headers": headers})
        if path in FILES:
            self.answer(FILES[path][1], FILES[path][0])
        elif path == "/seen":
            with lock:
                self.answer(json.dumps(seen))
        elif path == "/api/echo":
            self.answer(json.dumps({"method": self.command, "path": self.path, "headers": headers, "body": body.decode("latin-1")}))
        elif path == "/login":
            to = args["next"]
            if args.get("absolute"):
                to = args["absolute"] + "://" + self.headers["Host"] + to
            self.answer("", status=303, headers=[("Location", to), ("Set-Cookie", "session=of-" + sys.argv[2] + "; Path=/; HttpOnly"),
                ("Set-Cookie", "wide=1; Path=/; Domain=" + self.headers["Host"].split(":")[0].partition(".")[2])])
        elif path == "/events":
            self.events(args["key"])
        elif path == "/acknowledge":
            with changed:
                acknowledged[args["key"]] = int(args["n"])
                changed.notify_all()
            self.answer("{}")
        elif path == "/ws":
            self.websocket()
        elif path == "/big":
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Disposition", 'attachment; filename="big.bin"')
            self.send_header("Content-Length", str(BIG << 20))
            self.end_headers()
            for _ in range(BIG):
                self.wfile.write(BLOCK)
        elif path == "/strict":
            self.answer('<form id="form" method="post" action="/login?next=/welcome"></form>', "text/html", headers=[("Referrer-Policy", "no-referrer")])
        else:
            self.answer(PAGE % {"title": sys.argv[2]}, "text/html")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = serve

    def events(self, key):
        """Three events, each sent when the client has shown that it has the one before."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        start = int(self.headers.get("Last-Event-ID") or 0)
        for n in range(start + 1, start + 4):
            data = f"retry: 10\nid: {n}\ndata: event {n}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
            with changed:
                changed.wait_for(lambda: acknowledged.get(key, 0) >= n, timeout=20)
        self.wfile.write(b"0\r\n\r\n")

    def websocket(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        if "Sec-WebSocket-Protocol" in self.headers:
            self.send_header("Sec-WebSocket-Protocol", self.headers["Sec-WebSocket-Protocol"].split(",")[0].strip())
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        while True:
            head = self.rfile.read(2)
            if len(head) < 2:
                return
            op, n = head[0] & 15, head[1] & 127
            if n == 126:
                n = struct.unpack(">H", self.rfile.read(2))[0]
            elif n == 127:
                n = struct.unpack(">Q", self.rfile.read(8))[0]
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(n)))
            if n < 126:
                size = bytes([n])
            elif n < 65536:
                size = b"\x7e" + struct.pack(">H", n)
            else:
                size = b"\x7f" + struct.pack(">Q", n)
            self.wfile.write(bytes([0x80 | op]) + size + data)
            self.wfile.flush()
            if op == 8:
                return


http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), App).serve_forever()
