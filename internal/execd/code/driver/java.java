// The driver for Java. It runs through the source launcher of JDK 11 and later,
// and evaluates the user's code with the JDK's own JShell, whose engine is a
// second virtual machine: it can be stopped in the middle of code.

import java.io.ByteArrayInputStream;
import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.lang.reflect.Field;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import jdk.jshell.Diag;
import jdk.jshell.EvalException;
import jdk.jshell.JShell;
import jdk.jshell.JShellException;
import jdk.jshell.Snippet;
import jdk.jshell.SnippetEvent;
import jdk.jshell.SourceCodeAnalysis;
import jdk.jshell.SourceCodeAnalysis.CompletionInfo;
import jdk.jshell.UnresolvedReferenceException;
import sun.misc.Signal;

public class Driver {
    static final int ORDERS = 3, REPORTS = 4, HALTS = 8;
    // How long code has after one wish to stop, in nanoseconds: it may be cleaning up.
    static final long STOP_AGAIN = 1_000_000_000L;
    static final int MAX_TEXT = 1 << 20;
    // What the jshell tool imports for its users.
    static final String[] IMPORTS = {"java.io.*", "java.math.*", "java.net.*", "java.nio.file.*", "java.util.*",
        "java.util.concurrent.*", "java.util.function.*", "java.util.regex.*", "java.util.stream.*"};

    static InputStream orders;
    static OutputStream reports;
    static JShell shell;
    static long run;
    static long count;
    // The run that is under way, 0 between two runs.
    static long live;
    static volatile boolean stopped;

    public static void main(String[] args) throws Exception {
        orders = new java.io.BufferedInputStream(new FileInputStream(descriptor(ORDERS)));
        reports = new FileOutputStream(descriptor(REPORTS));
        shell = JShell.builder().in(new ByteArrayInputStream(new byte[0])).out(System.out).err(System.err).build();
        shell.onShutdown(s -> System.exit(0));
        // It is for what the code has started; a signal does not say which run it is
        // about, and may be late.
        Signal.handle(new Signal("INT"), s -> { });
        Thread halts = new Thread(Driver::halt);
        halts.setDaemon(true);
        halts.start();
        for (String name : IMPORTS) {
            shell.eval("import " + name + ";");
        }
        send("\"t\":\"ready\"");
        for (;;) {
            String[] head = line().split(" ");
            byte[] code = orders.readNBytes(Integer.parseInt(head[2]));
            run = Long.parseLong(head[1]);
            count++;
            turn(run);
            send("\"t\":\"busy\"");
            String end = evaluate(new String(code, StandardCharsets.UTF_8));
            turn(0);
            System.out.flush();
            System.err.flush();
            send(end + ",\"count\":" + count);
        }
    }

    // halt reads which runs are to stop, and has their code stopped. JShell can miss
    // that when the code is at a certain point, without a word; then it is told again.
    static void halt() {
        try (java.util.Scanner lines = new java.util.Scanner(new FileInputStream(descriptor(HALTS)), "US-ASCII")) {
            long last = 0, at = 0;
            while (lines.hasNextLine()) {
                String[] words = lines.nextLine().split(" ");
                long n = Long.parseLong(words[1]);
                if (n == last && System.nanoTime() - at < STOP_AGAIN) {
                    continue;
                }
                stop(n);
                last = n;
                at = System.nanoTime();
            }
        } catch (Exception e) {
            System.err.println("[code can't be interrupted: " + e + "]");
        }
    }

    // turn says which run is under way. It waits for a stop, so that one hits no
    // other run.
    static synchronized void turn(long n) {
        live = n;
        stopped = false;
    }

    static synchronized void stop(long n) {
        if (n == live) {
            stopped = true;
            shell.stop();
        }
    }

    // descriptor wraps an inherited descriptor, for which there is no public
    // constructor.
    static FileDescriptor descriptor(int number) throws Exception {
        FileDescriptor fd = new FileDescriptor();
        Field field = FileDescriptor.class.getDeclaredField("fd");
        field.setAccessible(true);
        field.setInt(fd, number);
        return fd;
    }

    static String line() throws IOException {
        StringBuilder text = new StringBuilder();
        for (int c = orders.read(); c != '\n'; c = orders.read()) {
            if (c < 0) {
                System.exit(0);
            }
            text.append((char) c);
        }
        return text.toString();
    }

    static synchronized void send(String members) throws IOException {
        reports.write(("{" + members + ",\"n\":" + run + "}\n").getBytes(StandardCharsets.US_ASCII));
        reports.flush();
    }

    // evaluate runs code, one snippet after another, and returns the members of
    // the last report.
    static String evaluate(String code) throws IOException {
        SourceCodeAnalysis analysis = shell.sourceCodeAnalysis();
        String value = null;
        for (String rest = code; !rest.isBlank() && !stopped;) {
            CompletionInfo info = analysis.analyzeCompletion(rest);
            String source = info.source();
            if (source == null) {
                if (onlyComments(rest)) {
                    break;
                }
                source = rest;
            }
            value = null;
            for (SnippetEvent event : shell.eval(source)) {
                if (event.causeSnippet() != null) {
                    continue;
                }
                String failure = failure(event, source);
                if (failure != null) {
                    return failure;
                }
                Snippet.SubKind kind = event.snippet().subKind();
                boolean shown = kind == Snippet.SubKind.TEMP_VAR_EXPRESSION_SUBKIND || kind == Snippet.SubKind.VAR_VALUE_SUBKIND
                    || kind == Snippet.SubKind.OTHER_EXPRESSION_SUBKIND;
                if (shown && event.value() != null && !event.value().isEmpty()) {
                    value = event.value();
                }
            }
            rest = info.source() == null ? "" : info.remaining();
        }
        if (stopped) {
            return error("KeyboardInterrupt", "the code was interrupted", List.of("KeyboardInterrupt"));
        }
        if (value != null) {
            if (value.length() > MAX_TEXT) {
                value = value.substring(0, MAX_TEXT) + "… (" + value.length() + " characters in all)";
            }
            System.out.flush();
            send("\"t\":\"result\",\"count\":" + count + ",\"data\":{\"text/plain\":" + quote(value) + "}");
        }
        return "\"t\":\"done\"";
    }

    static boolean onlyComments(String text) {
        return text.replaceAll("(?s)/\\*.*?\\*/", "").replaceAll("//[^\n]*", "").isBlank();
    }

    // failure describes what went wrong with a snippet, or is null.
    static String failure(SnippetEvent event, String source) {
        if (event.exception() != null) {
            return stopped ? error("KeyboardInterrupt", "the code was interrupted", List.of("KeyboardInterrupt")) : thrown(event.exception());
        }
        if (event.status() != Snippet.Status.REJECTED) {
            return null;
        }
        List<String> lines = new ArrayList<>();
        String first = "the code is incomplete";
        for (Diag diag : (Iterable<Diag>) shell.diagnostics(event.snippet())::iterator) {
            if (!diag.isError()) {
                continue;
            }
            if (lines.isEmpty()) {
                first = diag.getMessage(Locale.ENGLISH);
            }
            int at = (int) Math.max(0, Math.min(diag.getPosition(), source.length()));
            int begin = source.lastIndexOf('\n', Math.max(0, at - 1)) + 1;
            int end = source.indexOf('\n', at) < 0 ? source.length() : source.indexOf('\n', at);
            lines.add("error: " + diag.getMessage(Locale.ENGLISH));
            if (begin <= end) {
                lines.add("    " + source.substring(begin, end));
                lines.add("    " + " ".repeat(Math.max(0, at - begin)) + "^");
            }
        }
        if (lines.isEmpty()) {
            lines.add("error: " + first);
            lines.add("    " + source.strip());
        }
        return error("CompilationError", first, lines);
    }

    static String thrown(JShellException exception) {
        List<String> lines = new ArrayList<>();
        String name = exception.getClass().getSimpleName();
        String message = String.valueOf(exception.getMessage());
        for (Throwable e = exception; e != null; e = e.getCause()) {
            String type = e instanceof EvalException ? ((EvalException) e).getExceptionClassName() : e.getClass().getName();
            if (e == exception) {
                name = type;
            }
            if (e instanceof UnresolvedReferenceException) {
                message = "it refers to what is not declared: " + ((UnresolvedReferenceException) e).getSnippet().source();
            }
            lines.add((e == exception ? "" : "Caused by: ") + type + ": " + e.getMessage());
            for (StackTraceElement frame : e.getStackTrace()) {
                if (lines.size() < 100) {
                    lines.add("    at " + frame);
                }
            }
        }
        return error(name, message, lines);
    }

    static String error(String name, String value, List<String> traceback) {
        StringBuilder list = new StringBuilder();
        for (String text : traceback) {
            list.append(list.length() == 0 ? "" : ",").append(quote(text));
        }
        return "\"t\":\"error\",\"ename\":" + quote(name) + ",\"evalue\":" + quote(value) + ",\"traceback\":[" + list + "]";
    }

    // quote writes a JSON string in ASCII.
    static String quote(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < ' ' || c > '~') {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        return out.append('"').toString();
    }
}
