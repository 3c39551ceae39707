// Package testutil builds what tests stand on: network namespaces, hosts with
// ebpnet of their own in them, containers, the wires and the outside world
// between them, and small programs that talk over them. It drives ebpnet only
// by its command line, and imports nothing of it.
//
// Everything made here carries the process id of the test in its name
// (Prefix), goes when its test ends, and Main fails the run if anything stays.
// To look around in a failing test, let it sleep and use
// `nsenter --net=/run/netns/NAME`.
package testutil

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"testing"
	"time"
)

// How long a condition may take to come true on a slow and busy machine, and
// how often it is looked at.
const (
	patience     = 15 * time.Second
	pollInterval = 10 * time.Millisecond
)

// randomBytes is enough for names made by one process never to meet.
const randomBytes = 4

// RequireRoot skips the test without root, which namespaces and BPF need. As
// root it never skips.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("left out: it needs root, for network namespaces and BPF")
	}
}

// Eventually polls until cond is true, and fails the test if it does not come
// to be so.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(pollInterval)
	}
}

// Prefix begins the name of every namespace and pin directory of this process.
func Prefix() string { return fmt.Sprintf("ebt%d-", os.Getpid()) }

func uniqueName(name string) string {
	var b [randomBytes]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return Prefix() + name + "-" + hex.EncodeToString(b[:])
}
