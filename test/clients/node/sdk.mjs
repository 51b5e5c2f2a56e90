// The official SDK for JavaScript, with everything that it can do.

import { createHash } from "node:crypto";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The package is in an environment of its own, not beside this file.
const require = createRequire(process.env.NODE_ENVIRONMENT + "/package.json");
const sdk = await import(pathToFileURL(require.resolve("@alibaba-group/opensandbox")).href.replace("/cjs/index.cjs", "/index.js"));
const { ConnectionConfig, Sandbox, SandboxApiException, SandboxException, SandboxManager, SandboxReadyTimeoutException } = sdk;

const image = process.env.TEST_IMAGE;
const metadata = { suite: "clients" };
const checks = [];
const check = (name, run) => checks.push([name, run]);

class Failure extends Error {}
class Skip extends Error {}

function equal(got, want, what) {
  const [a, b] = [JSON.stringify(got), JSON.stringify(want)];
  if (a !== b) throw new Failure(`${what}: got ${a}, want ${b}`);
}
function truth(ok, what) {
  if (!ok) throw new Failure(what);
}
function contains(text, part, what) {
  truth(String(text).includes(part), `${what}: ${JSON.stringify(part)} is not in ${JSON.stringify(String(text))}`);
}
async function refused(kind, what, run) {
  try {
    await run();
  } catch (e) {
    if (!(e instanceof kind)) throw e;
    return e;
  }
  throw new Failure(`${what}: no error came`);
}
const text = (messages) => messages.map((m) => m.text.replace(/\n$/, "")).join("\n");
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

function apiError(e, status, code) {
  equal(e.statusCode, status, "status");
  truth(e.error.code && e.error.message && e.requestId, `code, message and request id of ${e}`);
  if (code) equal(e.error.code, code, "code");
}

const create = (more = {}) => Sandbox.create({ image, metadata, ...more });

check("create: every option", async () => {
  const made = await create({
    env: { A: "1", B: "two words" },
    metadata: { ...metadata, owner: "me" },
    resource: { cpu: "500m", memory: "256Mi" },
    platform: { os: "linux", arch: "amd64" },
    extensions: { "opensandbox.extensions.note": "kept" },
    entrypoint: ["sh", "-c", "exec sleep 1000000"],
    timeoutSeconds: 180,
    secureAccess: true,
  });
  try {
    equal(text((await made.commands.run('echo "$A|$B"')).logs.stdout), "1|two words", "environment");
    const info = await made.getInfo();
    equal(info.metadata, { owner: "me", suite: "clients" }, "metadata");
    equal(info.extensions, { "opensandbox.extensions.note": "kept" }, "extensions");
    const left = (info.expiresAt - Date.now()) / 1000;
    truth(left > 60 && left <= 180, `${left} seconds are left of 180`);
  } finally {
    await made.kill();
    await made.close();
  }
});

check("create: without an end, with a health check of one's own, skipping it", async () => {
  let asked = 0;
  const made = await create({ timeoutSeconds: null, healthCheck: async (s) => (await s.isHealthy()) && ++asked === 2, healthCheckPollingInterval: 20 });
  try {
    equal((await made.getInfo()).expiresAt, null, "expiry");
    equal(asked, 2, "probes");
  } finally {
    await made.kill();
    await made.close();
  }
  const early = await create({ skipHealthCheck: true });
  await early.waitUntilReady({ readyTimeoutSeconds: 20, pollingIntervalMillis: 20 });
  await early.kill();
  await early.close();
});

check("readiness: a check that never holds", async () => {
  await refused(SandboxReadyTimeoutException, "create", () =>
    create({ metadata: { ...metadata, never: "ready" }, healthCheck: () => false, readyTimeoutSeconds: 1, healthCheckPollingInterval: 100 }),
  );
  const manager = SandboxManager.create();
  equal((await manager.listSandboxInfos({ metadata: { never: "ready" } })).items.length, 0, "left behind");
  await manager.close();
});

check("readiness: an entrypoint that can't start", async () => {
  const e = await refused(SandboxException, "create", () => create({ entrypoint: ["/no/such/program"], readyTimeoutSeconds: 8 }));
  contains(`${e.message} ${e.error?.message}`, "/no/such/program", "the text");
});

check("errors: status, code, message and request id", async (sandbox) => {
  const manager = SandboxManager.create();
  for (const run of [
    () => manager.getSandboxInfo("no-such"),
    () => manager.pauseSandbox("no-such"),
    () => manager.resumeSandbox("no-such"),
    () => manager.renewSandbox("no-such", 60),
    () => manager.killSandbox("no-such"),
    () => manager.patchSandboxMetadata("no-such", { a: "b" }),
  ]) {
    const e = await refused(SandboxApiException, "no such sandbox", run);
    apiError(e, 404, "SANDBOX::SANDBOX_NOT_FOUND");
    contains(e.error.message, "not found", "the text");
  }
  await manager.close();
  const strangers = SandboxManager.create({ connectionConfig: { apiKey: "wrong" } });
  apiError(await refused(SandboxApiException, "a wrong key", () => strangers.getSandboxInfo(sandbox.id)), 401, "INVALID_API_KEY");
  await strangers.close();
  apiError(await refused(SandboxApiException, "a bad image", () => create({ image: "UPPER:bad:tag" })), 400);
  apiError(await refused(SandboxApiException, "bad memory", () => create({ resource: { memory: "lots" } })), 400);
  apiError(await refused(SandboxApiException, "a missing image", () => create({ image: "127.0.0.1:1/no/such:image" })), 503);
});

check("errors: the SDK's own checks, and no server", async (sandbox) => {
  contains(await refused(Error, "neither image nor snapshot", () => create({ image: undefined })), "image", "the text");
  apiError(await refused(SandboxApiException, "a bad line", () => sandbox.files.readFile("/etc/hostname", { offset: -1 })), 400);
  const manager = SandboxManager.create({ connectionConfig: { domain: "127.0.0.1:1" } });
  await refused(Error, "no server", () => manager.getSandboxInfo("x"));
  await manager.close();
});

check("commands: output, handlers, exit codes, options", async (sandbox) => {
  const seen = [];
  const result = await sandbox.commands.run("echo one; echo two; echo three >&2", {}, {
    onInit: (i) => seen.push(["init", i.id]),
    onStdout: (m) => seen.push(["out", m.text]),
    onStderr: (m) => seen.push(["err", m.text]),
    onExecutionComplete: (c) => seen.push(["complete", c.executionTimeMs >= 0]),
  });
  equal([text(result.logs.stdout), text(result.logs.stderr), result.exitCode], ["one\ntwo", "three", 0], "result");
  equal([seen[0], seen.at(-1)], [["init", result.id], ["complete", true]], "events");
  const failing = await sandbox.commands.run("exit 7");
  equal([failing.exitCode, failing.error.value], [7, "7"], "a failing command");
  const options = await sandbox.commands.run('echo "$X $PWD $(id -u):$(id -g)"', { workingDirectory: "/tmp", envs: { X: "y z" }, uid: 65534, gid: 65534 });
  equal(text(options.logs.stdout), "y z /tmp 65534:65534", "options");
  const late = await sandbox.commands.run("sleep 60", { timeoutSeconds: 1 });
  truth(late.exitCode !== 0, "a command past its time-out has no success");
  const large = await sandbox.commands.run("seq 50000");
  equal([large.logs.stdout.length, large.logs.stdout.at(-1).text.trim()], [50000, "50000"], "large output");
  equal(text((await sandbox.commands.run("printf 'ä漢🙂\\n'")).logs.stdout), "ä漢🙂", "unicode");
});

check("commands: a stream of events, and an interrupt", async (sandbox) => {
  const types = [];
  for await (const event of sandbox.commands.runStream("echo a; echo b >&2")) types.push(event.type);
  equal([types[0], types.at(-1)], ["init", "execution_complete"], "types");
  truth(types.includes("stdout") && types.includes("stderr"), `types ${types}`);
  // The SDK's own way, a signal, has no effect once events come.
  const interrupted = await sandbox.commands.run("exec sleep 876543", {}, { onInit: (init) => sandbox.commands.interrupt(init.id) });
  truth(interrupted.exitCode !== 0, "an interrupted command has no success");
});

check("commands: in the background", async (sandbox) => {
  const started = await sandbox.commands.run("echo begun; sleep 1000", { background: true });
  truth((await sandbox.commands.getCommandStatus(started.id)).running, "it runs");
  let logs;
  for (let i = 0; i < 200; i++) {
    logs = await sandbox.commands.getBackgroundCommandLogs(started.id);
    if (logs.content) break;
    await sleep(20);
  }
  equal(logs.content, "begun\n", "log");
  equal((await sandbox.commands.getBackgroundCommandLogs(started.id, logs.cursor)).content, "", "from the cursor on");
  await sandbox.commands.interrupt(started.id);
  const status = await sandbox.commands.getCommandStatus(started.id);
  truth(!status.running && status.exitCode !== undefined && status.finishedAt, `it ended: ${JSON.stringify(status)}`);
  apiError(await refused(SandboxApiException, "status", () => sandbox.commands.getCommandStatus("no-such")), 404);
});

check("commands: sessions", async (sandbox) => {
  const id = await sandbox.commands.createSession({ workingDirectory: "/usr" });
  await sandbox.commands.runInSession(id, "export KEPT=1; f() { echo in f; }; cd lib");
  const result = await sandbox.commands.runInSession(id, 'f; echo "$KEPT $PWD"');
  equal(text(result.logs.stdout), "in f\n1 /usr/lib", "kept");
  equal((await sandbox.commands.runInSession(id, "(exit 4)")).exitCode, 4, "exit code");
  equal(text((await sandbox.commands.runInSession(id, "pwd", { workingDirectory: "/etc" })).logs.stdout), "/etc", "directory");
  await sandbox.commands.deleteSession(id);
  apiError(await refused(SandboxApiException, "delete", () => sandbox.commands.deleteSession(id)), 404);
});

check("commands: twenty at once", async (sandbox) => {
  const results = await Promise.all(Array.from({ length: 20 }, (_, i) => sandbox.commands.run(`sleep 0.2; echo ${i}`)));
  equal(results.map((r) => text(r.logs.stdout)), Array.from({ length: 20 }, (_, i) => String(i)), "output");
});

check("files: everything", async (sandbox) => {
  const f = sandbox.files;
  await f.createDirectories([{ path: "/tmp/d/e", mode: 750 }]);
  const bytes = Uint8Array.from({ length: 256 }, (_, i) => i);
  await f.writeFiles([
    { path: "/tmp/d/a.txt", data: "alpha\nbeta\n", mode: 644 },
    { path: "/tmp/d/e/b.bin", data: bytes, mode: 600 },
    { path: "/tmp/d/e/ü +%.txt", data: "named", mode: 644 },
  ]);
  equal(await f.readFile("/tmp/d/a.txt"), "alpha\nbeta\n", "text");
  equal([...(await f.readBytes("/tmp/d/e/b.bin"))], [...bytes], "bytes");
  equal([...(await f.readBytes("/tmp/d/e/b.bin", { range: "bytes=10-12" }))], [10, 11, 12], "a range");
  equal((await f.readFile("/tmp/d/a.txt", { offset: 2, limit: 1 })).trimEnd(), "beta", "a line");
  equal(await f.readFile("/tmp/d/e/ü +%.txt"), "named", "a name that needs care");
  const info = (await f.getFileInfo(["/tmp/d/a.txt"]))["/tmp/d/a.txt"];
  equal([info.mode, info.size, info.owner, info.type], [644, 11, "root", "file"], "info");
  truth(info.modifiedAt instanceof Date, "a date");
  equal((await f.search({ path: "/tmp/d", pattern: "*.bin" })).map((e) => e.path), ["/tmp/d/e/b.bin"], "search");
  equal((await f.listDirectory({ path: "/tmp/d", depth: 1 })).map((e) => e.path).sort(), ["/tmp/d/a.txt", "/tmp/d/e"], "list");
  await f.moveFiles([{ src: "/tmp/d/a.txt", dest: "/tmp/d/c.txt" }]);
  equal((await f.replaceContentsDetailed([{ path: "/tmp/d/c.txt", oldContent: "beta", newContent: "gamma" }]))[0].replacedCount, 1, "replaced");
  await f.replaceContents([{ path: "/tmp/d/c.txt", oldContent: "alpha", newContent: "ALPHA" }]);
  equal(await f.readFile("/tmp/d/c.txt"), "ALPHA\ngamma\n", "content");
  await f.setPermissions([{ path: "/tmp/d/c.txt", mode: 400, owner: "nobody", group: "nogroup" }]);
  const changed = (await f.getFileInfo(["/tmp/d/c.txt"]))["/tmp/d/c.txt"];
  equal([changed.mode, changed.owner, changed.group], [400, "nobody", "nogroup"], "permissions");
  await f.deleteFiles(["/tmp/d/c.txt"]);
  const e = await refused(SandboxApiException, "a removed file", () => f.readFile("/tmp/d/c.txt"));
  apiError(e, 404);
  // The SDK has words of its own for a failed download.
  contains(JSON.stringify(e.rawBody), "no such file", "the body");
  await f.deleteDirectories(["/tmp/d"]);
});

check("files: 32 MiB in a stream, both ways", async (sandbox) => {
  const block = new Uint8Array(1 << 20).map((_, i) => i * 7);
  const want = createHash("sha256");
  async function* data() {
    for (let i = 0; i < 32; i++) {
      want.update(block);
      yield block;
    }
  }
  await sandbox.files.writeFiles([{ path: "/tmp/large", data: data() }]);
  const got = createHash("sha256");
  for await (const chunk of sandbox.files.readBytesStream("/tmp/large")) got.update(chunk);
  equal(got.digest("hex"), want.digest("hex"), "digest");
  await sandbox.files.deleteFiles(["/tmp/large"]);
});

check("metrics, health, renew, metadata", async (sandbox) => {
  const metrics = await sandbox.getMetrics();
  truth(metrics.cpuCount > 0 && metrics.memoryTotalMiB > 0 && metrics.timestamp > 0, `metrics ${JSON.stringify(metrics)}`);
  truth(await sandbox.isHealthy(), "healthy");
  truth(await sandbox.health.ping(), "ping");
  const renewed = await sandbox.renew(1200);
  equal((await sandbox.getInfo()).expiresAt, renewed.expiresAt, "expiry");
  equal((await sandbox.patchMetadata({ extra: "1" })).metadata.extra, "1", "added");
  truth(!("extra" in (await sandbox.patchMetadata({ extra: null })).metadata), "removed");
});

check("endpoints: a web server, directly and through the server; signed ones", async (sandbox) => {
  await sandbox.files.writeFiles([{ path: "/srv/www/index.html", data: "served" }]);
  await sandbox.commands.run("exec python3 -m http.server 8000 --bind 0.0.0.0", { background: true, workingDirectory: "/srv/www" });
  for (const useServerProxy of [false, true]) {
    const connected = await Sandbox.connect({ sandboxId: sandbox.id, connectionConfig: { useServerProxy } });
    const { headers } = await connected.getEndpoint(8000);
    const url = await connected.getEndpointUrl(8000);
    let answer;
    for (let i = 0; i < 100; i++) {
      answer = await fetch(url + "/index.html", { headers });
      if (answer.status < 500) break;
      await sleep(50);
    }
    equal([answer.status, await answer.text()], [200, "served"], `through the server: ${useServerProxy}`);
    await connected.close();
  }
  const signed = await sandbox.getSignedEndpoint(8000, Math.floor(Date.now() / 1000) + 600);
  const answer = await fetch(`http://${signed.endpoint}/index.html`);
  equal([answer.status, await answer.text()], [200, "served"], "with a signed address alone");
  apiError(await refused(SandboxApiException, "an expiry that has passed", () => sandbox.getSignedEndpoint(8000, Math.floor(Date.now() / 1000) - 600)), 400);
});

check("pause, resume, connect", async (sandbox) => {
  await sandbox.pause();
  equal((await sandbox.getInfo()).status.state, "Paused", "state");
  apiError(await refused(SandboxApiException, "pause again", () => sandbox.pause()), 409);
  const resumed = await sandbox.resume();
  equal(text((await resumed.commands.run("echo back")).logs.stdout), "back", "after resume");
  await resumed.pause();
  const again = await Sandbox.resume({ sandboxId: sandbox.id });
  equal(text((await again.commands.run("echo again")).logs.stdout), "again", "after resume by id");
  // The first has the connections of the sandbox that it was resumed from.
  await again.close();
});

check("manager: filters, pages, lifecycle", async () => {
  const made = await Promise.all([0, 1, 2].map((n) => create({ metadata: { ...metadata, batch: "js", n: String(n) } })));
  const manager = SandboxManager.create();
  try {
    const page = await manager.listSandboxInfos({ metadata: { batch: "js" }, page: 2, pageSize: 2 });
    equal(page.pagination, { hasNextPage: false, page: 2, pageSize: 2, totalItems: 3, totalPages: 2 }, "page");
    equal(page.items.length, 1, "items");
    await manager.pauseSandbox(made[0].id);
    equal((await manager.listSandboxInfos({ metadata: { batch: "js" }, states: ["Paused"] })).items.map((i) => i.id), [made[0].id], "paused");
    await manager.resumeSandbox(made[0].id);
    equal((await manager.getSandboxInfo(made[0].id)).status.state, "Running", "state");
    await manager.renewSandbox(made[0].id, 90);
    equal((await manager.patchSandboxMetadata(made[0].id, { n: "9" })).metadata.n, "9", "metadata");
  } finally {
    for (const m of made) {
      await manager.killSandbox(m.id);
      await m.close();
    }
    await manager.close();
  }
});

check("through the server proxy", async () => {
  const made = await create({ connectionConfig: new ConnectionConfig({ useServerProxy: true }) });
  try {
    equal(text((await made.commands.run("echo proxied")).logs.stdout), "proxied", "output");
    await made.files.writeFiles([{ path: "/tmp/x", data: "y" }]);
    equal(await made.files.readFile("/tmp/x"), "y", "file");
  } finally {
    await made.kill();
    await made.close();
  }
});

check("isolation: says whether it is there", async (sandbox) => {
  const capabilities = await sandbox.isolation.capabilities();
  if (capabilities.available) {
    equal(text((await sandbox.isolation.runOnce("echo in", "/tmp")).logs.stdout), "in", "output");
    return;
  }
  truth(capabilities.message, "the reason");
  contains(await refused(Error, "list", () => sandbox.isolation.list()), "503", "the text");
  throw new Skip(`isolated runs are not available, and the server says so: ${capabilities.message}`);
});

check("egress: policy", async () => {
  const made = await create({ networkPolicy: { defaultAction: "deny", egress: [{ action: "allow", target: "Example.com" }] } });
  try {
    equal(JSON.stringify((await made.getEgressPolicy()).egress), JSON.stringify([{ action: "allow", target: "example.com" }]), "rules");
    await made.patchEgressRules([{ action: "deny", target: "bad.example.com" }]);
    equal((await made.getEgressPolicy()).egress.map((r) => r.target).join(), "bad.example.com,example.com", "rules, the new one first");
    equal((await made.getEgressPolicy()).defaultAction, "deny", "the default");
  } finally {
    await made.kill();
  }
});

check("snapshots: there, or refused clearly", async (sandbox) => {
  const missing = [];
  for (const [what, run] of [
    ["snapshots", () => sandbox.sandboxes.createSnapshot(sandbox.id, { name: "one" })],
  ]) {
    try {
      await run();
    } catch (e) {
      if (!(e instanceof SandboxApiException)) throw e;
      truth([400, 501].includes(e.statusCode), `${what}: ${e.statusCode} ${e}`);
      truth(e.error.code && e.requestId, `code and request id of ${e}`);
      missing.push(e.message);
    }
  }
  if (missing.length) throw new Skip(`not available, and the server says so: ${missing.join(" ")}`);
});

const sandbox = await create();
try {
  for (const [name, run] of checks) {
    const began = performance.now();
    const line = { check: name, ok: true };
    let timer;
    const late = new Promise((_, fail) => (timer = setTimeout(() => fail(new Failure("no end after 45 s")), 45_000)));
    try {
      await Promise.race([run(sandbox), late]);
    } catch (e) {
      if (e instanceof Skip) line.skip = e.message;
      else Object.assign(line, { ok: false, detail: e instanceof Failure ? e.message : `${e?.stack ?? e}\n${JSON.stringify(e?.error ?? null)} ${JSON.stringify(e?.rawBody ?? null)}` });
    } finally {
      clearTimeout(timer);
    }
    line.seconds = (performance.now() - began) / 1000;
    console.log(JSON.stringify(line));
  }
} finally {
  await sandbox.kill();
  await sandbox.close();
}
