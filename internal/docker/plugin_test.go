package docker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/loader"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// socketDirectory gives a new directory with a path short enough for a socket's.
func socketDirectory(t *testing.T) string {
	t.Helper()
	directory, err := os.MkdirTemp("", "ebp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(directory); err != nil {
			t.Error(err)
		}
	})
	return directory
}

// served is a plugin as an engine sees it.
type served struct {
	path   string // of its socket
	client *http.Client
	stop   context.CancelFunc
	ended  chan error
}

func serve(t *testing.T, p *Plugin) *served {
	t.Helper()
	directory := filepath.Join(socketDirectory(t), "plugins")
	listener, err := Listen(t.Context(), directory)
	if err != nil {
		t.Fatal(err)
	}
	s := &served{path: filepath.Join(directory, "ebpnet.sock"), ended: make(chan error, 1)}
	s.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.path)
	}}}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go func() { s.ended <- p.Serve(ctx, listener) }()
	t.Cleanup(func() {
		s.client.CloseIdleConnections()
		stop()
		if err := <-s.ended; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(s.path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after the end the socket is there: %v", err)
		}
	})
	return s
}

// post makes a call as an engine does, and gives what came back.
func (s *served) post(t *testing.T, method, body string) (status int, answer string) {
	t.Helper()
	response, err := s.client.Post("http://plugin/"+method, contentType, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// call makes a call that works.
func (s *served) call(t *testing.T, method, body string) (answer string) {
	t.Helper()
	status, answer := s.post(t, method, body)
	var failed struct{ Err string }
	if err := json.Unmarshal([]byte(answer), &failed); status != http.StatusOK || err != nil || failed.Err != "" {
		t.Fatalf("%s %s: %d %s", method, body, status, answer)
	}
	return answer
}

// refused makes a call that fails with one line for both kinds of drivers that
// has words in it.
func (s *served) refused(t *testing.T, method, body, words string) {
	t.Helper()
	status, answer := s.post(t, method, body)
	var failed struct{ Err, Error string }
	err := json.Unmarshal([]byte(answer), &failed)
	if status != http.StatusOK || err != nil || failed.Err != failed.Error || strings.Contains(failed.Err, "\n") ||
		!strings.HasPrefix(failed.Err, "ebpnet: ") || !strings.Contains(failed.Err, words) {
		t.Errorf("%s %s: %d %s, want %q", method, body, status, answer, words)
	}
}

// unloaded gives a plugin on a host on which ebpnet is not loaded.
func unloaded() *Plugin {
	return newPlugin(quiet(), func(context.Context) (hostAgent, error) {
		return nil, errors.Join(loader.ErrNotLoaded, errors.New("and more"))
	})
}

func TestHandshake(t *testing.T) {
	t.Parallel()
	s := serve(t, unloaded())
	for method, want := range map[string]string{
		"Plugin.Activate":                    `{"Implements":["NetworkDriver","IpamDriver"]}`,
		"NetworkDriver.GetCapabilities":      `{"ConnectivityScope":"local","Scope":"local"}`,
		"IpamDriver.GetCapabilities":         `{"RequiresMACAddress":false,"RequiresRequestReplay":false}`,
		"IpamDriver.GetDefaultAddressSpaces": `{"GlobalDefaultAddressSpace":"ebpnet","LocalDefaultAddressSpace":"ebpnet"}`,
		"NetworkDriver.DiscoverNew":          `{}`,
		"NetworkDriver.DiscoverDelete":       `{}`,
		"NetworkDriver.Leave":                `{}`,
		"NetworkDriver.EndpointOperInfo":     `{"Value":{}}`, // also of a call that is repeated without a body
	} {
		if got := s.call(t, method, ""); got != want {
			t.Errorf("%s: %s, want %s", method, got, want)
		}
	}
}

func TestBadCalls(t *testing.T) {
	t.Parallel()
	s := serve(t, unloaded())
	for _, c := range []struct {
		method, body string
		status       int
	}{
		{"NetworkDriver.CreateNetwork", "", http.StatusBadRequest},
		{"NetworkDriver.CreateNetwork", "[]", http.StatusBadRequest},
		{"NetworkDriver.CreateNetwork", `{"NetworkID":`, http.StatusBadRequest},
		{"NetworkDriver.CreateNetwork", strings.Repeat(" ", maxBody+1), http.StatusBadRequest},
		{"NetworkDriver.GwAllocCheck", "{}", http.StatusNotFound},
		{"VolumeDriver.Create", "{}", http.StatusNotFound},
		{"", "{}", http.StatusNotFound},
	} {
		if status, answer := s.post(t, c.method, c.body); status != c.status {
			t.Errorf("%s %.20q: %d %s, want %d", c.method, c.body, status, answer, c.status)
		}
	}
	response, err := s.client.Get("http://plugin/Plugin.Activate")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: %s", response.Status)
	}
	if _, answer := s.post(t, "NetworkDriver.Join", ""); !strings.Contains(answer, "try again") {
		t.Errorf("a call that is repeated without its body: %s", answer)
	}
	s.refused(t, "NetworkDriver.AllocateNetwork", "{}", "swarm")
	s.refused(t, "NetworkDriver.FreeNetwork", "{}", "swarm")
}

func TestNotLoaded(t *testing.T) {
	t.Parallel()
	s := serve(t, unloaded())
	for method, body := range map[string]string{
		"NetworkDriver.CreateNetwork":               `{"NetworkID":"` + netID + `","IPv4Data":[{"Pool":"10.50.0.0/16"}]}`,
		"NetworkDriver.DeleteNetwork":               `{"NetworkID":"` + netID + `"}`,
		"NetworkDriver.CreateEndpoint":              `{"NetworkID":"` + netID + `","EndpointID":"` + firstID + `"}`,
		"NetworkDriver.DeleteEndpoint":              `{"NetworkID":"` + netID + `","EndpointID":"` + firstID + `"}`,
		"NetworkDriver.Join":                        `{}`,
		"NetworkDriver.ProgramExternalConnectivity": `{}`,
		"NetworkDriver.RevokeExternalConnectivity":  `{}`,
		"IpamDriver.RequestPool":                    `{}`,
		"IpamDriver.RequestAddress":                 `{"PoolID":"10.50.0.0/16"}`,
	} {
		s.refused(t, method, body, "not loaded: run 'ebpnet load' first; and more")
	}
}

func TestSocket(t *testing.T) {
	t.Parallel()
	s := serve(t, unloaded())
	info, err := os.Lstat(s.path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	if _, err := Listen(t.Context(), filepath.Dir(s.path)); err == nil || !strings.Contains(err.Error(), "another 'ebpnet serve --docker' is running") {
		t.Errorf("a second server: %v", err)
	}
	s.call(t, "Plugin.Activate", "") // the first goes on

	directory := socketDirectory(t)
	path := filepath.Join(directory, "ebpnet.sock")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close()
	listener, err := Listen(t.Context(), directory)
	if err != nil {
		t.Fatalf("where a socket was left behind: %v", err)
	}
	listener.Close()

	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), directory); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("where a file is: %v", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the file is gone: %v", err)
	}
}

// A call that waits for its turn ends when the engine no longer waits for it.
func TestTurns(t *testing.T) {
	t.Parallel()
	p := unloaded()
	p.turn <- struct{}{}
	ctx, hangUp := context.WithCancel(t.Context())
	hangUp()
	if _, err := p.join(ctx, containerCall{}); !errors.Is(err, context.Canceled) {
		t.Errorf("hung up: %v", err)
	}
	<-p.turn
	if _, err := p.deleteNetwork(ctx, idCall{}); !errors.Is(err, loader.ErrNotLoaded) {
		t.Errorf("what takes away goes on, hung up: %v", err)
	}
	if _, err := p.deleteNetwork(t.Context(), idCall{}); !errors.Is(err, loader.ErrNotLoaded) {
		t.Errorf("its turn: %v", err)
	}
}
