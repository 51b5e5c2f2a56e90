// Command mkdoc writes the documentation of the configuration to a file.
package main

import (
	"bytes"
	"fmt"
	"os"

	"github.com/paddock-sandbox/paddock/internal/config"
)

func main() {
	var out bytes.Buffer
	err := config.WriteMarkdown(&out)
	if err == nil {
		err = os.WriteFile(os.Args[1], out.Bytes(), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkdoc:", err)
		os.Exit(1)
	}
}
