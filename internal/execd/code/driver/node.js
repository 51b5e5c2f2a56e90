// The driver for JavaScript and TypeScript. It is the body of a function with
// the parameters require, process, load and dialect; load is import().
//
// The user's code is evaluated in the global scope by the engine's own REPL mode
// (inspector, Runtime.evaluate with replMode): let and const may be declared
// again by later code, await works outside of functions, and the value of the
// last expression is known. It runs with Node.js 16 and later.
'use strict';

const fs = require('fs');
const inspector = require('inspector');
const moduleApi = require('module');
const net = require('net');
const path = require('path');
const url = require('url');
const util = require('util');
const vm = require('vm');

const ORDERS = 3, REPORTS = 4, CORE = 5, EXTRA = 6, ACKS = 7, HALTS = 8, WATCH = 9;
// The longest line of a report that execd takes, less some room.
const MAX_BUNDLE = (4 << 20) - (96 << 10);
const MAX_TEXT = 1 << 20;
const MAX_CELLS = 500;

const stderr = process.stderr;
const TAKE = Symbol('paddock take');
const DISPLAY = Symbol.for('Jupyter.display');

let count = 0;
// The run that is under way: {n, finish}.
let current = null;
let taken;

function define(name, value) {
  Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: false });
}

// ---- reports ----

function send(kind, fields) {
  const line = Buffer.from(JSON.stringify({ t: kind, n: current ? current.n : 0, ...fields }) + '\n');
  for (let at = 0; at < line.length;) {
    try {
      at += fs.writeSync(REPORTS, line, at);
    } catch (e) {
      if (e.code !== 'EAGAIN' && e.code !== 'EINTR') throw e;
    }
  }
}

const methods = {
  _repr_html_: 'text/html', _repr_markdown_: 'text/markdown', _repr_svg_: 'image/svg+xml', _repr_png_: 'image/png',
  _repr_jpeg_: 'image/jpeg', _repr_latex_: 'text/latex', _repr_json_: 'application/json',
  _toHtml: 'text/html', _toMd: 'text/markdown', _toSvg: 'image/svg+xml', _toPng: 'image/png',
};

function plain(value) {
  const text = util.inspect(value, { maxStringLength: MAX_TEXT });
  return text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)}… (${text.length} characters in all)` : text;
}

// bundle returns all representations of a value by MIME type.
function bundle(value) {
  const data = {};
  if (value !== null && (typeof value === 'object' || typeof value === 'function')) {
    try {
      if (typeof value[DISPLAY] === 'function') Object.assign(data, value[DISPLAY]());
      for (const [name, kind] of Object.entries(methods)) {
        if (!(kind in data) && typeof value[name] === 'function') {
          const given = value[name]();
          if (given !== undefined && given !== null) data[kind] = given;
        }
      }
    } catch (e) {
      stderr.write(`[a representation of the result failed: ${e}]\n`);
    }
  }
  if (!('text/plain' in data)) data['text/plain'] = plain(value);
  return fit(data);
}

function fit(data) {
  const kept = {};
  const sizes = {};
  let all = 0;
  for (const [kind, value] of Object.entries(data)) {
    let v = value;
    if (v instanceof Uint8Array) v = Buffer.from(v).toString('base64');
    if (typeof v !== 'string' && !/\bjson$/.test(kind)) v = String(v);
    const text = JSON.stringify(v);
    if (text === undefined) continue;
    kept[kind] = v;
    all += sizes[kind] = Buffer.byteLength(text);
  }
  while (all > MAX_BUNDLE) {
    const largest = Object.keys(kept).reduce((a, b) => (sizes[a] >= sizes[b] ? a : b));
    all -= sizes[largest];
    delete kept[largest];
    stderr.write(`[the result of type ${largest} was left out: it has ${sizes[largest]} bytes, and all types of a result together may have ${MAX_BUNDLE}]\n`);
  }
  return kept;
}

// display shows values while the code goes on. It returns when everything
// printed before and the values have been passed on.
function display(...values) {
  const raw = values.length === 2 && values[1] && values[1].raw === true;
  for (const value of raw ? [values[0]] : values) {
    const data = raw ? fit(value) : bundle(value);
    if (Object.keys(data).length === 0) continue;
    send('display', { data });
    const one = Buffer.alloc(1);
    for (;;) {
      try {
        fs.readSync(ACKS, one, 0, 1, null);
        break;
      } catch (e) {
        if (e.code !== 'EAGAIN' && e.code !== 'EINTR') throw e;
      }
    }
  }
}

// ---- errors ----

class Interrupted extends Error {
  get name() { return 'KeyboardInterrupt'; }
}

class Exit extends Error {
  constructor(code) {
    super(`process.exit(${code})`);
    this.code = code;
  }
  get name() { return 'SystemExit'; }
}

function text(f) {
  try {
    return String(f());
  } catch (e) {
    return '';
  }
}

// describe says of a thrown value what a report says. details is what the
// engine knows of it, if it does.
function describe(thrown, details, source) {
  if (thrown instanceof Exit) {
    return { ename: 'SystemExit', evalue: String(thrown.code), traceback: [`SystemExit: ${thrown.code}`] };
  }
  if (!util.types.isNativeError(thrown)) {
    const shown = text(() => plain(thrown));
    return { ename: 'Uncaught', evalue: shown, traceback: [`Uncaught ${shown}`] };
  }
  const ename = text(() => thrown.name) || 'Error';
  const evalue = text(() => thrown.message);
  let lines = text(() => thrown.stack).split('\n');
  const own = lines.findIndex((l) => /^\s+at .*(paddock.driver|node:inspector|node:vm)/.test(l));
  if (own > 0) lines = lines.slice(0, own);
  if (details && ename === 'SyntaxError' && !lines.some((l) => /^\s+at /.test(l))) {
    const line = source.split('\n')[details.lineNumber];
    lines.push(`    at <cell-${count}>:${details.lineNumber + 1}:${details.columnNumber + 1}`);
    if (line !== undefined) lines.push(`        ${line.slice(0, 500)}`);
  }
  if (thrown.cause !== undefined) lines.push(...text(() => `cause: ${plain(thrown.cause)}`).split('\n'));
  return { ename, evalue, traceback: lines };
}

// ---- source text ----

// rewrite turns import declarations and import() into calls of the driver's
// loader, because code in the global scope can have neither. It knows enough of
// the language to leave strings, comments, templates and regular expressions
// alone.
function rewrite(source) {
  if (!/\b(import|export)\b/.test(source)) return source;
  let out = '', copied = 0, last = '', depth = 0;
  const templates = [];
  const replace = (from, to, by) => {
    out += source.slice(copied, from) + by + '\n'.repeat(source.slice(from, to).split('\n').length - 1);
    copied = to;
  };
  for (let i = 0; i < source.length;) {
    const c = source[i];
    if (/\s/.test(c)) { i++; continue; }
    if (source.startsWith('//', i)) { i = end(source, '\n', i); continue; }
    if (source.startsWith('/*', i)) { i = end(source, '*/', i + 2); continue; }
    if (c === '"' || c === "'") { i = skipString(source, i); last = 'value'; continue; }
    if (c === '`' || (c === '}' && templates.length > 0 && templates[templates.length - 1] === depth)) {
      if (c === '}') templates.pop();
      i = skipTemplate(source, i + 1);
      if (source[i - 1] === '{') templates.push(depth);
      last = source[i - 1] === '{' ? '(' : 'value';
      continue;
    }
    if (c === '/' && !/^(value|\)|\]|\})$/.test(last)) { i = skipRegExp(source, i); last = 'value'; continue; }
    if (/[A-Za-z_$\u0080-\uffff]/.test(c)) {
      const word = /^[\w$\u0080-\uffff]+/.exec(source.slice(i, i + 512))[0];
      const before = last;
      last = /^(return|typeof|case|in|of|delete|void|throw|new|else|do|await|yield)$/.test(word) ? 'word' : 'value';
      if (word === 'import' && before !== '.') {
        const rest = source.slice(i);
        const call = /^import(?=\s*\()/.exec(rest);
        const declared = depth === 0 && templates.length === 0 && declaration(rest);
        if (call) replace(i, i + 6, '__paddock_import__');
        else if (declared) {
          replace(i, i + declared.length, declared.text);
          i += declared.length;
          last = ';';
          continue;
        }
      } else if (word === 'export' && before !== '.' && depth === 0) {
        const found = /^export\s+(?:default\s+|(?=(?:async|function|class|const|let|var|enum)\b))|^export\s*\{[^}]*\}\s*;?/.exec(source.slice(i));
        if (found) {
          replace(i, i + found[0].length, '');
          i += found[0].length;
          last = ';';
          continue;
        }
      }
      i += word.length;
      continue;
    }
    if (/[0-9]/.test(c)) { i += /^[\w.]+/.exec(source.slice(i, i + 512))[0].length; last = 'value'; continue; }
    if (/[([{]/.test(c)) depth++;
    if (/[)\]}]/.test(c)) depth--;
    last = c;
    i++;
  }
  return out + source.slice(copied);
}

function end(source, what, from) {
  const at = source.indexOf(what, from);
  return at < 0 ? source.length : at + what.length;
}

function skipString(source, i) {
  const quote = source[i++];
  while (i < source.length && source[i] !== quote && source[i] !== '\n') i += source[i] === '\\' ? 2 : 1;
  return i + 1;
}

// skipTemplate returns what follows the closing quote or the next "${".
function skipTemplate(source, i) {
  for (; i < source.length; i++) {
    if (source[i] === '\\') i++;
    else if (source[i] === '`') return i + 1;
    else if (source[i] === '$' && source[i + 1] === '{') return i + 2;
  }
  return i;
}

function skipRegExp(source, i) {
  let set = false;
  for (i++; i < source.length && source[i] !== '\n'; i++) {
    if (source[i] === '\\') i++;
    else if (source[i] === '[') set = true;
    else if (source[i] === ']') set = false;
    else if (source[i] === '/' && !set) return i + 1;
  }
  return i;
}

// declaration translates the import declaration at the start of rest.
function declaration(rest) {
  const found = /^import\s*(?:([^'"();]*?)\s*from\s*)?(['"])([^'"\n]+)\2(?:\s*(?:with|assert)\s*\{[^}]*\})?[ \t]*;?/.exec(rest);
  if (!found) return null;
  const [whole, clause, , name] = found;
  const source = `await __paddock_import__(${JSON.stringify(name)})`;
  if (!clause) return { length: whole.length, text: `${source};` };
  const parts = [];
  const all = /\*\s*as\s+([\w$]+)/.exec(clause);
  const named = /\{([^}]*)\}/.exec(clause);
  const first = /^([\w$]+)\s*(?:,|$)/.exec(clause);
  if (all) parts.push(`const ${all[1]} = ${source}`);
  const names = [];
  if (first) names.push(`default: ${first[1]}`);
  if (named) {
    for (const item of named[1].split(',')) {
      const one = /^\s*([\w$]+|'[^']*'|"[^"]*")(?:\s+as\s+([\w$]+))?\s*$/.exec(item);
      if (one) names.push(one[2] ? `${one[1]}: ${one[2]}` : one[1]);
    }
  }
  if (names.length > 0) parts.push(`const {${names.join(', ')}} = ${source}`);
  return parts.length === 0 ? null : { length: whole.length, text: parts.join('; ') + ';' };
}

// find loads a package, or tells where its description is. It is looked for from
// the working directory, and where npm installs for everybody.
function find(name, where = false) {
  const from = [process.cwd(), path.join(path.dirname(path.dirname(process.execPath)), 'lib'), '/usr/local/lib', '/usr/lib', '/usr/share/nodejs'];
  for (const dir of from) {
    try {
      const load = moduleApi.createRequire(path.join(dir, 'cell.js'));
      return where ? load.resolve(name + '/package.json') : load(name);
    } catch (e) {
      if (e.code !== 'MODULE_NOT_FOUND' && e.code !== 'ERR_PACKAGE_PATH_NOT_EXPORTED') throw e;
    }
  }
  return null;
}

// native is the stripper of TypeScript 7 and later, whose compiler is a program
// in a package of its own. It takes some 10 ms for a run and checks no types.
function native(description) {
  const platform = `@typescript/typescript-${process.platform}-${process.arch}`;
  let compiler;
  try {
    compiler = path.join(path.dirname(moduleApi.createRequire(description).resolve(platform + '/package.json')), 'lib', 'tsc');
  } catch (e) {
    return null;
  }
  const options = ['--noCheck', '--noResolve', '--noLib', '--types', '', '--isolatedModules', '--ignoreConfig', '--pretty', 'false',
    '--target', 'es2022', '--module', 'esnext', '--moduleResolution', 'bundler'];
  return (source) => {
    const dir = fs.mkdtempSync(path.join(require('os').tmpdir(), 'paddock-typescript-'));
    try {
      fs.writeFileSync(path.join(dir, 'cell.ts'), source);
      const done = require('child_process').spawnSync(compiler, [...options, '--outDir', path.join(dir, 'out'), path.join(dir, 'cell.ts')],
        { cwd: dir, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 1 << 20, timeout: 20000 });
      if (done.error) throw done.error;
      if (done.signal) throw new Error(`the compiler of TypeScript ended by ${done.signal}`);
      // Without a library it misses types, which has no place in the code and is
      // none of its business here: only the syntax is.
      const wrong = /^cell\.ts\((\d+),\d+\): error TS1\d{3}: (.*)$/m.exec(done.stdout);
      if (wrong) throw new SyntaxError(`${wrong[2]} (line ${wrong[1]})`);
      return fs.readFileSync(path.join(dir, 'out', 'cell.js'), 'utf8').replace(/^export \{\};\n?/m, '');
    } finally {
      fs.rmSync(dir, { recursive: true, force: true });
    }
  };
}

// stripper returns a function that turns TypeScript into JavaScript, or null.
function stripper() {
  if (typeof moduleApi.stripTypeScriptTypes === 'function') {
    return (source) => {
      const warn = process.emitWarning;
      process.emitWarning = () => {};
      try {
        return moduleApi.stripTypeScriptTypes(source, { mode: 'transform' });
      } finally {
        process.emitWarning = warn;
      }
    };
  }
  const typescript = find('typescript');
  if (typescript && !typescript.transpileModule) return native(find('typescript', true));
  if (typescript) {
    return (source) => {
      const options = { target: typescript.ScriptTarget.ES2022, module: typescript.ModuleKind.ESNext, verbatimModuleSyntax: false };
      const out = typescript.transpileModule(source, { compilerOptions: options, reportDiagnostics: true });
      const wrong = (out.diagnostics || []).find((d) => d.category === typescript.DiagnosticCategory.Error);
      if (wrong) throw new SyntaxError(typescript.flattenDiagnosticMessageText(wrong.messageText, '\n'));
      return out.outputText.replace(/^export \{\};\n?/m, '');
    };
  }
  const esbuild = find('esbuild');
  if (esbuild) {
    const tsconfigRaw = { compilerOptions: { verbatimModuleSyntax: true } };
    return (source) => esbuild.transformSync(source, { loader: 'ts', target: 'es2022', tsconfigRaw }).code;
  }
  const swc = find('@swc/core');
  if (swc) return (source) => swc.transformSync(source, { jsc: { parser: { syntax: 'typescript' }, target: 'es2022' } }).code;
  const sucrase = find('sucrase');
  if (sucrase) return (source) => sucrase.transform(source, { transforms: ['typescript'], disableESTransforms: true }).code;
  return null;
}

let strip = null;

function prepare(source) {
  let code = source.startsWith('#!') ? '//' + source : source;
  if (dialect === 'typescript') code = strip(code);
  // What looks like an object is one, as in Node's own REPL.
  if (/^\s*\{/.test(code) && !/;\s*$/.test(code)) {
    try {
      new vm.Script(`(${code}\n)`);
      code = `(${code}\n)`;
    } catch (e) {
      // It is a block.
    }
  }
  return rewrite(code);
}

// ---- running code ----

const session = new inspector.Session();
session.connect();
// Every script that is evaluated is kept by the engine for its debugger unless
// that is off, which it is.
let globalId = null;

function post(method, parameters) {
  return new Promise((resolve, reject) => {
    session.post(method, parameters, (error, answer) => (error ? reject(new Error(error.message)) : resolve(answer)));
  });
}

// fetch returns the value that a remote object stands for.
function fetch(remote) {
  const argument = remote.objectId ? { objectId: remote.objectId }
    : 'unserializableValue' in remote ? { unserializableValue: remote.unserializableValue } : { value: remote.value };
  taken = undefined;
  session.post('Runtime.callFunctionOn', {
    objectId: globalId, functionDeclaration: 'function(v) { this[Object.getOwnPropertySymbols(this).find(s => s.description === "paddock take")](v) }', arguments: [argument],
  });
  const value = taken;
  taken = undefined;
  return value;
}

// evaluate runs code and returns a promise of what came of it.
function evaluate(code) {
  return post('Runtime.evaluate', {
    expression: `${code}\n//# sourceURL=<cell-${count}>`, replMode: true, silent: true, objectGroup: 'paddock', includeCommandLineAPI: false,
  });
}

// Shared with the watcher: the run that is under way, 0 between two runs.
const shared = new Int32Array(new SharedArrayBuffer(4));

// watch starts a thread that stops code which does not wait for anything: the
// main thread reads no interrupts then. (A signal can't be relied on: Node.js
// has no handler for it at the moment when it begins or ends to let a signal
// break a script.)
function watch() {
  const { Worker } = require('worker_threads');
  const watcher = new Worker(`
    const { workerData: { fd, shared } } = require('worker_threads');
    const session = new (require('inspector').Session)();
    session.connectToMainThread();
    new (require('net').Socket)({ fd, readable: true, writable: false }).on('data', (text) => {
      const run = Number(text.toString().trim().split(/\\s+/).pop()) | 0;
      // The main thread is quicker if it can do anything at all.
      setTimeout(() => {
        if (Atomics.load(shared, 0) === run) session.post('Runtime.terminateExecution');
      }, 100);
    });`, { eval: true, workerData: { fd: WATCH, shared } });
  watcher.on('error', (e) => stderr.write(`[code that does not wait can't be interrupted: ${e}]\n`));
  watcher.unref();
}

// interrupts reads which runs are to stop. Those that are over by now are none
// of its business.
function interrupts(chunk) {
  for (const line of chunk.toString().split('\n')) {
    const [word, n] = line.split(' ');
    if (word === 'stop' && current && Number(n) === current.n) current.finish({ thrown: new Interrupted('the code was interrupted') });
  }
}

async function run(n, source) {
  count++;
  const me = { n };
  current = me;
  Atomics.store(shared, 0, n | 0);
  const finished = new Promise((resolve) => { me.finish = resolve; });
  let report;
  try {
    send('busy');
    const code = prepare(source);
    // Not from here: what stops the code stops all that it was called by.
    setImmediate(() => evaluate(code).then((answer) => me.finish({ answer, code }), (thrown) => me.finish({ thrown })));
    report = conclude(await finished);
  } catch (e) {
    report = failed(e);
  }
  Atomics.store(shared, 0, 0);
  send(report.kind, report.fields);
  current = null;
  session.post('Runtime.releaseObjectGroup', { objectGroup: 'paddock' }, () => {});
}

// conclude shows the value of a run, and returns its last report.
function conclude({ answer, code, thrown }) {
  if (!answer) return failed(thrown);
  const { exceptionDetails: details, result } = answer;
  if (details) {
    return failed(details.exception ? fetch(details.exception) : new Error(details.text), details, code);
  }
  if (result.type !== 'undefined') {
    const value = fetch(result);
    define('_', value);
    send('result', { data: bundle(value), count });
  }
  return { kind: 'done', fields: { count } };
}

function failed(thrown, details, source) {
  if (thrown instanceof Exit && thrown.code === 0) return { kind: 'done', fields: { count } };
  return { kind: 'error', fields: { count, ...describe(thrown, details, source) } };
}

// ---- orders ----

let pending = [];
let size = 0;

function receive(chunk) {
  pending.push(chunk);
  size += chunk.length;
  if (pending[0].indexOf(10) < 0) {
    pending = [Buffer.concat(pending)];
    if (pending[0].indexOf(10) < 0) return;
  }
  const head = pending[0].subarray(0, pending[0].indexOf(10)).toString();
  const [, n, length] = head.split(' ');
  const stop = head.length + 1 + Number(length);
  if (size < stop) return;
  const all = Buffer.concat(pending);
  pending = all.length > stop ? [all.subarray(stop)] : [];
  size = all.length - stop;
  run(Number(n), all.toString('utf8', head.length + 1, stop));
}

function start() {
  for (const fd of [CORE, EXTRA]) fs.closeSync(fd);
  if (dialect === 'typescript') {
    strip = stripper();
    if (!strip) {
      stderr.write(`typescript needs Node.js 22.13 or newer (this is ${process.version}), or one of the packages typescript, esbuild, @swc/core and sucrase, which "npm install -g typescript" installs\n`);
      process.exit(1);
    }
  }
  Object.defineProperty(globalThis, TAKE, { value: (v) => { taken = v; } });
  define('__paddock_import__', async (name) => {
    const local = /^\.{0,2}\//.test(name);
    // Which versions want what attributes for JSON differs; require never did.
    if (/\.json$/.test(name)) return { default: moduleApi.createRequire(path.resolve('cell.js'))(name) };
    return load(local ? url.pathToFileURL(path.resolve(name)).href : name);
  });
  define('display', display);
  process.exit = (code = process.exitCode ?? 0) => {
    const exit = new Exit(Number(code));
    if (current) current.finish({ thrown: exit });
    throw exit;
  };
  // Interrupts come on a descriptor; the signal that goes with them must not end
  // the process.
  process.on('SIGINT', () => {});
  for (const kind of ['uncaughtException', 'unhandledRejection']) {
    process.on(kind, (thrown) => {
      if (thrown instanceof Exit) return;
      stderr.write(`Uncaught ${text(() => (util.types.isNativeError(thrown) ? thrown.stack : plain(thrown)))}\n`);
    });
  }
  session.post('Runtime.evaluate', { expression: 'globalThis' }, (error, answer) => { globalId = answer.result.objectId; });
  const orders = new net.Socket({ fd: ORDERS, readable: true, writable: false });
  orders.on('data', receive);
  orders.on('end', () => process.reallyExit(0));
  new net.Socket({ fd: HALTS, readable: true, writable: false }).on('data', interrupts);
  send('ready');
  watch();
}

start();
