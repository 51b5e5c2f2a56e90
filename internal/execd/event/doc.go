// Package event writes the stream of server-sent events that answers a run of a
// command (OpenSandbox execd API): init first, output as it comes, and exactly one
// of execution_complete and error at the end.
//
// One output event carries one line without its terminator, and an empty line
// is the text "\n": that is the contract's convention, and the official SDKs
// put lines together again from it. It alone would lose information, so three
// members that SDKs ignore are added where they are needed. The exact bytes of
// the output are, event after event,
//
//	raw (base64) if present, else text if it is not "\n", followed by
//	eol if present, else "\n".
//
// That is: eol is "\r\n" for a line that ended so, and "" for text that no line
// end followed (yet); raw is there when the bytes are not valid UTF-8, which
// text shows with replacement characters.
//
// An SDK that only joins texts comes close: the Python SDK gives a line break
// where a pause or a length cut a line, and drops the first of the empty lines
// that follow a line of text. The convention leaves no way around that.
//
// When text without a line end is sent:
//   - at the end of the stream;
//   - up to and including the last carriage return, as soon as the output
//     pauses: progress displays work, and the SDKs join such texts exactly;
//   - when the output pauses for longer (shortPause, or longPause for what looks
//     like a long line of data rather than a prompt). The SDKs put a line break
//     there when they join texts, so pauses that only come from a busy machine
//     must not count;
//   - when a line grows beyond maxLine, or beyond minLine when the memory for
//     long lines of all streams is used up.
package event
