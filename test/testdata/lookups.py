"""Asks a resolver the same question N times and prints how long each took, in
nanoseconds: lookups.py RESOLVER NAME N. Policies allow 100 questions a second."""
import socket, struct, sys, time

resolver, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
question = b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + b"\0" + struct.pack(">HH", 1, 1)
times = []
for i in range(count):
    if i:
        time.sleep(0.0105)
    asked = struct.pack(">HHHHHH", i & 0xffff, 0x0100, 1, 0, 0, 0) + question
    begin = time.perf_counter_ns()
    # A socket for each, as stub resolvers have.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.connect((resolver, 53))
        s.send(asked)
        answer = s.recv(4096)
    times.append(time.perf_counter_ns() - begin)
    if answer[:2] != asked[:2] or answer[3] & 15 not in (0, 3):
        sys.exit(f"question {i} was answered {answer[:12].hex()}")
print(*times)
