package docker

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ebpnet/ebpnet/internal/agent"
)

// patience is far longer than anything here takes.
const patience = time.Minute

// await gives the first text that holds want, and fails the test if none comes.
func await(t *testing.T, from <-chan string, want string) string {
	t.Helper()
	for late := time.After(patience); ; {
		select {
		case text := <-from:
			if strings.Contains(text, want) {
				return text
			}
		case <-late:
			t.Fatalf("%q did not come", want)
		}
	}
}

// lines sends on what is written, a write a line.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// serveAt serves an engine until the returned function is called.
func serveAt(t *testing.T, socket string, routes http.Handler) (end func()) {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: routes}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	return func() {
		server.Close()
		serving.Wait()
	}
}

// An engine is followed as often as it comes back, and it is told once that it
// is away. A container that is created is inspected at once, whatever else is
// known of it.
func TestFollow(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 1024)
	happens := make(chan string)
	routes := recorded()
	engine := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		if r.URL.Path != "/events" {
			routes.ServeHTTP(w, r)
			return
		}
		flush := func() {
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
		}
		flush()
		for {
			select {
			case <-r.Context().Done():
				return
			case text := <-happens:
				_, _ = io.WriteString(w, text)
				flush()
			}
		}
	})
	socket := filepath.Join(t.TempDir(), "engine.sock")
	e, err := NewEngine("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	log := make(lines, 1024)
	ctx, cancel := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() {
		Follow(ctx, e, agent.Place{State: t.TempDir()}, slog.New(slog.NewTextHandler(log, nil)))
	})
	await(t, log, "waiting for the Docker engine")
	for range 2 {
		end := serveAt(t, socket, engine)
		await(t, asked, "/events")
		if line := await(t, log, "msg="); !strings.Contains(line, "following the Docker engine") {
			t.Errorf("told of again, or of something else: %s", line)
		}
		happens <- fmt.Sprintf(`{"Type":"container","Action":"create","Actor":{"ID":%q}}`+"\n", "cafe")
		await(t, asked, "/containers/cafe/json")
		happens <- fmt.Sprintf(`{"Type":"network","Action":"connect","Actor":{"ID":%q,"Attributes":{"container":"f00d"}}}`+"\n", webID)
		await(t, asked, "/containers/f00d/json")
		end()
		await(t, log, "waiting for the Docker engine")
	}
	cancel()
	following.Wait()
	if len(log) != 0 {
		t.Errorf("told of the end: %s", <-log)
	}
}
