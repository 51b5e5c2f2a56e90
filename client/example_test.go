package client_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/client"
)

// A sandbox from its creation to its end.
func Example() {
	ctx := context.Background()
	c, err := client.New(client.Options{APIKey: os.Getenv("PADDOCK_API_KEY")})
	if err != nil {
		log.Fatal(err)
	}
	sb, err := c.Create(ctx, client.CreateRequest{
		Image:      "python:3.11",
		Entrypoint: []string{"tail", "-f", "/dev/null"},
		Timeout:    10 * time.Minute,
		Wait:       time.Minute,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Delete(ctx, sb.ID)

	err = c.UploadFiles(ctx, sb.ID, client.UploadFile{Path: "/tmp/hello.py", Content: strings.NewReader("print('hello')")})
	if err != nil {
		log.Fatal(err)
	}
	res, err := c.Run(ctx, sb.ID, client.Command{Argv: []string{"python3", "/tmp/hello.py"}},
		client.Output{Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("exit code", res.ExitCode)
}
