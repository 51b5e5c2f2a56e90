// probe makes system calls inside a container and says what came of them. Its
// first argument is what to do:
//
//	calls JSON   make the calls of a JSON array of {nr, args}, print the array
//	             of error numbers
//	status       print the lines of /proc/self/status about confinement
//	legacy       make a call the way a 32-bit program does, and print "survived"
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"runtime"
	"strings"
	"syscall"
)

type call struct {
	NR   uintptr    `json:"nr"`
	Args [6]uintptr `json:"args"`
}

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("probe: what to do is missing")
	}
	switch os.Args[1] {
	case "calls":
		calls(os.Args[2])
	case "status":
		status()
	case "legacy":
		legacy()
		fmt.Println("survived")
	default:
		log.Fatalf("probe: unknown request %q", os.Args[1])
	}
}

func calls(list string) {
	var in []call
	if err := json.Unmarshal([]byte(list), &in); err != nil {
		log.Fatal(err)
	}
	runtime.LockOSThread()
	out := make([]int, len(in))
	for i, c := range in {
		_, _, errno := syscall.RawSyscall6(c.NR, c.Args[0], c.Args[1], c.Args[2], c.Args[3], c.Args[4], c.Args[5])
		out[i] = int(errno)
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		log.Fatal(err)
	}
}

func status() {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		log.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		for _, key := range []string{"Seccomp:", "NoNewPrivs:", "CapEff:"} {
			if strings.HasPrefix(line, key) {
				fmt.Println(line)
			}
		}
	}
}
