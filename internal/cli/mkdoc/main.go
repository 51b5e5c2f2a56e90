// Mkdoc writes docs/cli.md.
package main

import (
	"bytes"
	"log"
	"os"

	"github.com/paddock-sandbox/paddock/internal/cli"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: mkdoc FILE")
	}
	var b bytes.Buffer
	if err := cli.WriteReference(&b); err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(os.Args[1], b.Bytes(), 0o644); err != nil {
		log.Fatal(err)
	}
}
