package test

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestServeTellsThatItIsReady: systemd starts Docker when serve's sockets are
// there, and not before.
func TestServeTellsThatItIsReady(t *testing.T) {
	h := newHost(t)
	directory, err := os.MkdirTemp("", "ebt") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(directory) })
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(directory, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = manager.Close() })
	serve := append([]string{"NOTIFY_SOCKET=" + manager.LocalAddr().String()},
		h.Command("serve", "--listen", "127.0.0.1:0", "--docker", "--docker-plugins", directory, "--docker-host", "unix://"+directory+"/none")...)
	process := h.Start(t, "env", serve...)
	message := make([]byte, 64)
	if err := manager.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := manager.Read(message)
	if err != nil || string(message[:n]) != "READY=1" {
		t.Fatalf("%q (%v), want READY=1\n%s", message[:n], err, process.Output())
	}
	plugin, err := net.Dial("unix", filepath.Join(directory, "ebpnet.sock"))
	if err != nil {
		t.Fatalf("ready, and does not answer: %v", err)
	}
	_ = plugin.Close()
}
