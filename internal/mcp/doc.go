// Package mcp lets agents use sandboxes over the Model Context Protocol. A
// Server offers tools (tools.go and the files named after what they act on) and
// serves them over standard input and output or over streamable HTTP. It holds
// no sandbox of its own: every tool is a call of the client package.
//
// # The session's sandbox
//
// Every tool that acts on a sandbox takes sandbox_id, which may be left out. Then
// it acts on the session's own sandbox, which is made when it is first needed and
// deleted when the session ends. Its lifetime is prolonged while it is used, so
// that one whose server was killed expires by itself. Sandboxes that
// sandbox_create makes belong to nobody's session: they live until sandbox_delete
// or until they expire.
//
// # What a model reads
//
// Tools that print (commands, code, files) answer with text, others with JSON,
// for which they have an output schema. Everything is bounded, and an answer says
// what was cut and how to get at it. Errors say what to do next. What comes out
// of a sandbox is passed on as it is but for bytes that are no UTF-8; it is data,
// and may try to instruct the model.
package mcp
