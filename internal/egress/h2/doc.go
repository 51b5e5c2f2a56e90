// Package h2 relays one HTTP/2 connection (RFC 9113) to another, frame by frame.
//
// A sandbox's connection has exactly one to its destination, and each stream of
// it one stream there. The heads of requests and answers are decoded, checked,
// shown to a Handler that may change or refuse them, and encoded anew; bodies
// pass as DATA frames, through a Filter where the Handler wants one. Everything
// else belongs to one side only: each has its own settings, header tables and
// windows.
//
//	DATA            passed on as far as the receiver's windows reach; the rest is
//	                held, and the sender gets no more credit meanwhile
//	HEADERS         checked and encoded anew, trailers and interim answers too
//	RST_STREAM      passed on
//	PING            passed on, so that what comes back says that both sides live
//	SETTINGS        answered here; how many streams and whether CONNECT may have
//	                a protocol (RFC 8441) is passed on from the destination
//	WINDOW_UPDATE   for what is sent here; credit goes on when bytes have gone on
//	GOAWAY          the destination's is passed on with an id of the sandbox's side
//	PUSH_PROMISE    refused: push is turned off
//	PRIORITY, other dropped
//
// Ids are not the same on both sides: a request that is refused here, or whose
// body must be whole before it goes, would take its turn from those behind it.
//
// Two goroutines read, one from each side; whatever a frame leads to happens
// under one lock and in memory, and what is to be sent is written by whoever is
// about to wait. Both sides are hostile: frames, heads, bytes that are held, and
// frames that cost work without bringing any (resets, settings, pings, empty
// frames) are bounded.
package h2
