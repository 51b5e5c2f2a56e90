// The official SDK for the JVM, with everything that it can do.

import com.alibaba.opensandbox.sandbox.Sandbox;
import com.alibaba.opensandbox.sandbox.SandboxManager;
import com.alibaba.opensandbox.sandbox.config.ConnectionConfig;
import com.alibaba.opensandbox.sandbox.domain.exceptions.*;
import com.alibaba.opensandbox.sandbox.domain.models.execd.executions.*;
import com.alibaba.opensandbox.sandbox.domain.models.execd.filesystem.*;
import com.alibaba.opensandbox.sandbox.domain.models.sandboxes.*;
import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import java.util.stream.*;

public class Sdk {
    static final String IMAGE = System.getenv("TEST_IMAGE");
    static final ConnectionConfig CONFIG = ConnectionConfig.builder().build();

    static class Failure extends RuntimeException {
        Failure(String what) { super(what); }
    }

    interface Check {
        void run(Sandbox sandbox) throws Exception;
    }

    static void equal(Object got, Object want, String what) {
        if (!Objects.equals(got, want)) throw new Failure(what + ": got " + got + ", want " + want);
    }

    static void isTrue(boolean ok, String what) {
        if (!ok) throw new Failure(what);
    }

    static <E extends Throwable> E refused(Class<E> kind, String what, Callable<?> run) throws Exception {
        try {
            run.call();
        } catch (Throwable e) {
            if (kind.isInstance(e)) return kind.cast(e);
            throw e;
        }
        throw new Failure(what + ": no error came");
    }

    static void apiError(SandboxApiException e, int status, String code) {
        equal(e.getStatusCode(), status, "status of " + e);
        isTrue(e.getError().getMessage() != null && !e.getError().getMessage().isEmpty(), "a message: " + e.getError());
        if (code != null) equal(e.getError().getCode(), code, "code");
    }

    static String text(List<OutputMessage> messages) {
        return messages.stream().map(m -> m.getText().replaceAll("\n$", "")).collect(Collectors.joining("\n"));
    }

    static Sandbox.Builder builder() {
        return Sandbox.builder().image(IMAGE).connectionConfig(CONFIG).metadata("suite", "clients");
    }

    static WriteEntry entry(String path, Object data, int mode) {
        return WriteEntry.builder().path(path).data(data).mode(mode).build();
    }

    static void create(Sandbox unused) throws Exception {
        Sandbox made = builder().env("A", "two words").metadata("owner", "jvm").resource(Map.of("cpu", "500m", "memory", "256Mi"))
            .entrypoint("sh", "-c", "exec sleep 1000000").timeout(Duration.ofMinutes(3)).readyTimeout(Duration.ofSeconds(20))
            .healthCheckPollingInterval(Duration.ofMillis(50)).build();
        try {
            equal(text(made.commands().run("echo \"$A\"").getLogs().getStdout()), "two words", "environment");
            SandboxInfo info = made.getInfo();
            equal(info.getMetadata(), Map.of("suite", "clients", "owner", "jvm"), "metadata");
            equal(info.getStatus().getState().toString(), "Running", "state");
            equal(info.getEntrypoint().get(0), "sh", "entrypoint");
            isTrue(info.getImage().getImage().contains(IMAGE), "image");
            long left = Duration.between(java.time.OffsetDateTime.now(), info.getExpiresAt()).toSeconds();
            isTrue(left > 60 && left <= 180, left + " seconds are left of 180");
        } finally {
            made.kill();
            made.close();
        }
    }

    static void readiness(Sandbox unused) throws Exception {
        refused(SandboxReadyTimeoutException.class, "create", () ->
            builder().metadata("never", "ready-jvm").healthCheck(s -> false).readyTimeout(Duration.ofSeconds(1))
                .healthCheckPollingInterval(Duration.ofMillis(100)).build());
        try (SandboxManager manager = SandboxManager.builder().connectionConfig(CONFIG).build()) {
            PagedSandboxInfos page = manager.listSandboxInfos(SandboxFilter.builder().metadata(Map.of("never", "ready-jvm")).build());
            equal(page.getSandboxInfos().size(), 0, "left behind");
        }
    }

    static void entrypoint(Sandbox unused) throws Exception {
        SandboxException e = refused(SandboxException.class, "create", () ->
            builder().entrypoint("/no/such/program").readyTimeout(Duration.ofSeconds(8)).build());
        isTrue((e + " " + e.getError()).contains("/no/such/program"), "the text: " + e + " " + e.getError());
    }

    static void errors(Sandbox sandbox) throws Exception {
        UUID nothing = UUID.fromString("00000000-0000-4000-8000-000000000000");
        try (SandboxManager manager = SandboxManager.builder().connectionConfig(CONFIG).build()) {
            for (Callable<?> run : List.<Callable<?>>of(
                    () -> manager.getSandboxInfo(nothing),
                    () -> { manager.killSandbox(nothing); return null; },
                    () -> { manager.pauseSandbox(nothing); return null; },
                    () -> { manager.resumeSandbox(nothing); return null; },
                    () -> { manager.renewSandbox(nothing, Duration.ofMinutes(1)); return null; })) {
                apiError(refused(SandboxApiException.class, "no such sandbox", run), 404, "SANDBOX::SANDBOX_NOT_FOUND");
            }
        }
        ConnectionConfig wrong = ConnectionConfig.builder().apiKey("wrong").build();
        try (SandboxManager manager = SandboxManager.builder().connectionConfig(wrong).build()) {
            apiError(refused(SandboxApiException.class, "a wrong key", () -> manager.getSandboxInfo(sandbox.getId())), 401, "INVALID_API_KEY");
        }
        apiError(refused(SandboxApiException.class, "a bad image", () -> builder().image("UPPER:bad:tag").build()), 400, null);
        apiError(refused(SandboxApiException.class, "bad memory", () -> builder().resource(Map.of("memory", "lots")).build()), 400, null);
        ConnectionConfig nowhere = ConnectionConfig.builder().domain("127.0.0.1:1").build();
        try (SandboxManager manager = SandboxManager.builder().connectionConfig(nowhere).build()) {
            refused(SandboxException.class, "no server", () -> manager.getSandboxInfo(nothing));
        }
    }

    static void commands(Sandbox sandbox) throws Exception {
        List<String> seen = Collections.synchronizedList(new ArrayList<>());
        ExecutionHandlers handlers = ExecutionHandlers.builder()
            .onInit(i -> seen.add("init " + i.getId())).onStdout(m -> seen.add("out " + m.getText())).onStderr(m -> seen.add("err " + m.getText()))
            .onExecutionComplete(c -> seen.add("complete")).onError(e -> seen.add("error " + e.getValue())).build();
        Execution result = sandbox.commands().run(RunCommandRequest.builder().command("echo one; echo two; echo three >&2; pwd")
            .workingDirectory("/tmp").handlers(handlers).build());
        equal(text(result.getLogs().getStdout()), "one\ntwo\n/tmp", "stdout");
        equal(text(result.getLogs().getStderr()), "three", "stderr");
        equal(seen.get(0), "init " + result.getId(), "the first event");
        equal(seen.get(seen.size() - 1), "complete", "the last event");
        equal(sandbox.commands().run("exit 7").getError().getValue(), "7", "a failing command");
        Execution large = sandbox.commands().run("seq 50000");
        equal(large.getLogs().getStdout().size(), 50000, "lines");
        equal(text(sandbox.commands().run("printf 'ä漢🙂\\n'").getLogs().getStdout()), "ä漢🙂", "unicode");
    }

    static void background(Sandbox sandbox) throws Exception {
        Execution started = sandbox.commands().run(RunCommandRequest.builder().command("exec sleep 765432").background(true).build());
        isTrue(started.getId() != null, "an id");
        sandbox.commands().interrupt(started.getId());
        for (int i = 0; i < 250; i++) {
            if (sandbox.commands().run("pgrep -f 'sleep 76543[2]'").getError() != null) return;
            Thread.sleep(20);
        }
        throw new Failure("the command runs on");
    }

    static void atOnce(Sandbox sandbox) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(20);
        try {
            List<Future<String>> results = new ArrayList<>();
            for (int i = 0; i < 20; i++) {
                String line = "sleep 0.2; echo " + i;
                results.add(pool.submit(() -> text(sandbox.commands().run(line).getLogs().getStdout())));
            }
            for (int i = 0; i < 20; i++) equal(results.get(i).get(), String.valueOf(i), "output");
        } finally {
            pool.shutdownNow();
        }
    }

    static void files(Sandbox sandbox) throws Exception {
        var f = sandbox.files();
        byte[] bytes = new byte[256];
        for (int i = 0; i < 256; i++) bytes[i] = (byte) i;
        f.createDirectories(List.of(WriteEntry.builder().path("/tmp/d/e").mode(750).build()));
        f.write(List.of(entry("/tmp/d/a.txt", "alpha\nbeta\n", 644), entry("/tmp/d/e/b.bin", bytes, 600)));
        f.writeFile("/tmp/d/ü +%.txt", "named");
        equal(f.readFile("/tmp/d/a.txt"), "alpha\nbeta\n", "text");
        equal(f.readFile("/tmp/d/ü +%.txt"), "named", "a name that needs care");
        isTrue(Arrays.equals(f.readByteArray("/tmp/d/e/b.bin"), bytes), "bytes");
        isTrue(Arrays.equals(f.readByteArray("/tmp/d/e/b.bin", "bytes=10-12"), new byte[] {10, 11, 12}), "a range");
        EntryInfo info = f.readFileInfo(List.of("/tmp/d/a.txt")).get("/tmp/d/a.txt");
        equal(List.of(info.getMode(), info.getSize(), info.getOwner()), List.of(644, 11L, "root"), "info");
        equal(f.search(SearchEntry.builder().path("/tmp/d").pattern("*.bin").build()).stream().map(EntryInfo::getPath).collect(Collectors.toList()), List.of("/tmp/d/e/b.bin"), "search");
        f.moveFiles(List.of(MoveEntry.builder().src("/tmp/d/a.txt").dest("/tmp/d/c.txt").build()));
        f.replaceContents(List.of(ContentReplaceEntry.builder().path("/tmp/d/c.txt").oldContent("beta").newContent("gamma").build()));
        equal(f.readFile("/tmp/d/c.txt"), "alpha\ngamma\n", "replaced");
        f.setPermissions(List.of(SetPermissionEntry.builder().path("/tmp/d/c.txt").mode(400).owner("nobody").group("nogroup").build()));
        info = f.readFileInfo(List.of("/tmp/d/c.txt")).get("/tmp/d/c.txt");
        equal(List.of(info.getMode(), info.getOwner(), info.getGroup()), List.of(400, "nobody", "nogroup"), "permissions");
        f.deleteFiles(List.of("/tmp/d/c.txt"));
        SandboxApiException e = refused(SandboxApiException.class, "a removed file", () -> f.readFile("/tmp/d/c.txt"));
        equal(e.getStatusCode(), 404, "status");
        f.deleteDirectories(List.of("/tmp/d"));
    }

    static void streams(Sandbox sandbox) throws Exception {
        byte[] data = new byte[8 << 20];
        new Random(1).nextBytes(data);
        sandbox.files().writeFile("/tmp/large", new ByteArrayInputStream(data));
        try (InputStream in = sandbox.files().readStream("/tmp/large", null)) {
            isTrue(Arrays.equals(in.readAllBytes(), data), "what came back");
        }
        sandbox.files().deleteFiles(List.of("/tmp/large"));
    }

    static void lifecycle(Sandbox sandbox) throws Exception {
        isTrue(sandbox.isHealthy(), "healthy");
        SandboxMetrics metrics = sandbox.getMetrics();
        isTrue(metrics.getMemoryTotalInMiB() > 0 && metrics.getCpuCount() > 0, "metrics " + metrics);
        sandbox.renew(Duration.ofMinutes(20));
        sandbox.pause();
        equal(sandbox.getInfo().getStatus().getState().toString(), "Paused", "state");
        apiError(refused(SandboxApiException.class, "pause again", () -> { sandbox.pause(); return null; }), 409, null);
        sandbox.resume();
        sandbox.checkReady(Duration.ofSeconds(20), Duration.ofMillis(50));
        try (Sandbox connected = Sandbox.connector().sandboxId(sandbox.getId()).connectionConfig(CONFIG).connect()) {
            equal(text(connected.commands().run("echo back").getLogs().getStdout()), "back", "after resume and connect");
        }
    }

    static void endpoint(Sandbox sandbox) throws Exception {
        sandbox.files().writeFile("/srv/www/index.html", "served");
        sandbox.commands().run(RunCommandRequest.builder().command("exec python3 -m http.server 8000 --bind 0.0.0.0").workingDirectory("/srv/www").background(true).build());
        URI uri = URI.create("http://" + sandbox.getEndpoint(8000).getEndpoint() + "/index.html");
        HttpResponse<String> answer = null;
        for (int i = 0; i < 100; i++) {
            answer = HttpClient.newHttpClient().send(HttpRequest.newBuilder(uri).build(), HttpResponse.BodyHandlers.ofString());
            if (answer.statusCode() < 500) break;
            Thread.sleep(50);
        }
        equal(List.of(answer.statusCode(), answer.body()), List.of(200, "served"), "answer");
    }

    static void manager(Sandbox unused) throws Exception {
        List<Sandbox> made = new ArrayList<>();
        try (SandboxManager manager = SandboxManager.builder().connectionConfig(CONFIG).build()) {
            try {
                for (int i = 0; i < 3; i++) made.add(builder().metadata("batch", "jvm").metadata("n", String.valueOf(i)).build());
                PagedSandboxInfos page = manager.listSandboxInfos(SandboxFilter.builder().metadata(Map.of("batch", "jvm")).page(2).pageSize(2).build());
                PaginationInfo p = page.getPagination();
                equal(List.of(p.getPage(), p.getPageSize(), p.getTotalItems(), p.getTotalPages(), p.getHasNextPage()), List.of(2, 2, 3, 2, false), "page");
                manager.pauseSandbox(made.get(0).getId());
                page = manager.listSandboxInfos(SandboxFilter.builder().metadata(Map.of("batch", "jvm")).states("Paused").build());
                equal(page.getSandboxInfos().stream().map(SandboxInfo::getId).collect(Collectors.toList()), List.of(made.get(0).getId()), "paused");
                manager.resumeSandbox(made.get(0).getId());
                manager.renewSandbox(made.get(0).getId(), Duration.ofMinutes(2));
                equal(manager.getSandboxInfo(made.get(0).getId()).getStatus().getState().toString(), "Running", "state");
            } finally {
                for (Sandbox s : made) {
                    manager.killSandbox(s.getId());
                    s.close();
                }
            }
        }
    }

    static String quoted(String text) {
        StringBuilder b = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') b.append('\\').append(c);
            else if (c < ' ') b.append(String.format("\\u%04x", (int) c));
            else b.append(c);
        }
        return b.append('"').toString();
    }

    public static void main(String[] args) throws Exception {
        Map<String, Check> checks = new LinkedHashMap<>();
        checks.put("create: every option", Sdk::create);
        checks.put("readiness: a check that never holds", Sdk::readiness);
        checks.put("readiness: an entrypoint that can't start", Sdk::entrypoint);
        checks.put("errors: status, code and message", Sdk::errors);
        checks.put("commands: output, handlers, exit codes, directory", Sdk::commands);
        checks.put("commands: in the background", Sdk::background);
        checks.put("commands: twenty at once", Sdk::atOnce);
        checks.put("files: everything", Sdk::files);
        checks.put("files: 8 MiB in a stream, both ways", Sdk::streams);
        checks.put("metrics, renew, pause, resume, connect", Sdk::lifecycle);
        checks.put("endpoint: a web server", Sdk::endpoint);
        checks.put("manager: filters, pages, lifecycle", Sdk::manager);

        var out = new java.io.PrintStream(new java.io.FileOutputStream(java.io.FileDescriptor.out), true, StandardCharsets.UTF_8);
        System.setOut(System.err);
        Sandbox sandbox = builder().build();
        try {
            checks.forEach((name, check) -> {
                long began = System.nanoTime();
                String detail = "";
                try {
                    check.run(sandbox);
                } catch (Failure e) {
                    detail = e.getMessage();
                } catch (Throwable e) {
                    StringWriter trace = new StringWriter();
                    e.printStackTrace(new PrintWriter(trace));
                    if (e instanceof SandboxException) trace.append(String.valueOf(((SandboxException) e).getError().getMessage()));
                    detail = trace.toString();
                }
                out.printf(Locale.ROOT, "{\"check\": %s, \"ok\": %b, \"detail\": %s, \"seconds\": %.3f}%n",
                    quoted(name), detail.isEmpty(), quoted(detail), (System.nanoTime() - began) / 1e9);
            });
        } finally {
            sandbox.kill();
            sandbox.close();
        }
        // The SDK's connections keep threads for a while.
        System.exit(0);
    }
}
