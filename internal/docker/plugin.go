// Package docker makes ebpnet a network and IPAM driver of a Docker engine, by
// the protocol of its plugins, and follows what the engine tells of its
// containers. It puts the engine's words into those of package spec and leaves
// the work to package agent; it knows nothing of devices, nor of the datapath.
//
// The protocol is told in moby's daemon/libnetwork/docs/remote.md and ipam.md:
// HTTP on a Unix socket in a directory that the engine looks into, one POST a
// call, JSON both ways. 'ebpnet serve --docker --debug' shows each call.
package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/ipam"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// PluginsDirectory is where an engine looks for its plugins' sockets.
const PluginsDirectory = "/run/docker/plugins"

// DefaultHost is where an engine serves its API.
const DefaultHost = "unix:///run/docker.sock"

// driverName is what the driver is called in the engine (-d ebpnet): an engine
// calls a plugin by the name of its socket.
const driverName = "ebpnet"

// contentType is that of plugins' answers.
const contentType = "application/vnd.docker.plugins.v1.2+json"

// maxBody bounds a call, in bytes: one with every port of TCP and UDP published
// has 14 million.
const maxBody = 32 << 20

// Time-outs of the server. How long a call may wait for others is up to the
// engine, which hangs up when it does not want to wait any longer.
const (
	readTimeout     = 10 * time.Second
	shutdownTimeout = 2 * time.Second
)

// hostAgent is what the plugin needs of an agent.Agent.
type hostAgent interface {
	View(f func(*store.Tx) error) error
	CreateNetwork(n spec.Network) (spec.Network, error)
	JoinNetwork(name string, user spec.Identity) (spec.Network, error)
	LeaveNetwork(name string, user spec.Identity) error
	AddEndpoint(e spec.Endpoint, publish []spec.Port) (spec.Endpoint, []spec.Port, error)
	RemoveEndpoint(name string) error
	SetExpose(endpoint string, ports []spec.Ports) error
	SetOutward(endpoint string, outward bool) error
	IsIdle(e spec.Endpoint) (bool, error)
	SetPorts(endpoint, engine string, wanted []spec.Port) ([]spec.Port, error)
	FreeSubnet(pools []ipam.Pool, held []netip.Prefix) (netip.Prefix, error)
	ChooseAddress(network string, within netip.Prefix, held func(netip.Addr) bool) (netip.Addr, error)
	Close() error
}

var _ hostAgent = (*agent.Agent)(nil)

// Plugin answers an engine's calls.
type Plugin struct {
	log  *slog.Logger
	open func(context.Context) (hostAgent, error)
	// Holds a value while a call has the host open: in here calls wait their
	// turn, where at the store's lock some would wait too long.
	turn  chan struct{}
	holds holds
}

// NewPlugin makes a plugin for the engine on the host at the place.
func NewPlugin(p agent.Place, log *slog.Logger) *Plugin {
	return newPlugin(log, func(ctx context.Context) (hostAgent, error) { return agent.Open(ctx, p, log) })
}

func newPlugin(log *slog.Logger, open func(context.Context) (hostAgent, error)) *Plugin {
	return &Plugin{log: log, open: open, turn: make(chan struct{}, 1), holds: newHolds()}
}

// Listen makes the plugin's socket in the directory, for root alone. One that
// was left behind is replaced; it is an error if one there is answered.
func Listen(ctx context.Context, directory string) (net.Listener, error) {
	path := filepath.Join(directory, driverName+".sock")
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of Docker's plugins: %w", err)
	}
	if err := clear(ctx, path); err != nil {
		return nil, err
	}
	// A socket has at its path the mode that it had before it was bound there.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, failed)
	}}
	listener, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("make the plugin's socket: %w", err)
	}
	return listener, nil
}

// clear makes way for a socket at path.
func clear(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for the plugin's socket: %w", err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is there and is no socket: move it away", path)
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		return errors.Join(fmt.Errorf("%s is answered: another 'ebpnet serve --docker' is running, stop it first", path), conn.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("see whether the plugin's socket is answered: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the plugin's old socket: %w", err)
	}
	return nil
}

// Serve answers calls until ctx ends, and closes the listener.
func (p *Plugin) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler: p.routes(), ReadTimeout: readTimeout,
		IdleTimeout: -1, // a call on a connection that is just being closed would be lost
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ending, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
		defer cancel()
		ended <- server.Shutdown(ending)
	})
	err := server.Serve(listener)
	if stop() || !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve Docker: %w", err)
	}
	if err := <-ended; err != nil {
		return fmt.Errorf("serve Docker: a call was not over when it ended: %w", err)
	}
	return nil
}

// method answers a call, whose JSON it takes.
type method func(ctx context.Context, body []byte) (any, error)

func (p *Plugin) methods() map[string]method {
	return map[string]method{
		"Plugin.Activate": always(map[string][]string{"Implements": {"NetworkDriver", "IpamDriver"}}),

		"NetworkDriver.GetCapabilities":             always(map[string]string{"Scope": "local", "ConnectivityScope": "local"}),
		"NetworkDriver.CreateNetwork":               taking(p.createNetwork),
		"NetworkDriver.DeleteNetwork":               taking(p.deleteNetwork),
		"NetworkDriver.AllocateNetwork":             refuseGlobal,
		"NetworkDriver.FreeNetwork":                 refuseGlobal,
		"NetworkDriver.CreateEndpoint":              taking(p.createEndpoint),
		"NetworkDriver.DeleteEndpoint":              taking(p.deleteEndpoint),
		"NetworkDriver.EndpointOperInfo":            always(map[string]nothing{"Value": {}}), // 'ebpnet endpoint inspect' tells more
		"NetworkDriver.Join":                        taking(p.join),
		"NetworkDriver.Leave":                       always(nothing{}), // DeleteEndpoint follows
		"NetworkDriver.ProgramExternalConnectivity": taking(p.publish),
		"NetworkDriver.RevokeExternalConnectivity":  taking(p.unpublish),
		"NetworkDriver.DiscoverNew":                 always(nothing{}), // of swarms' nodes
		"NetworkDriver.DiscoverDelete":              always(nothing{}),

		"IpamDriver.GetCapabilities":         always(map[string]bool{"RequiresMACAddress": false, "RequiresRequestReplay": false}),
		"IpamDriver.GetDefaultAddressSpaces": always(addressSpaces()),
		"IpamDriver.RequestPool":             taking(p.requestPool),
		"IpamDriver.ReleasePool":             taking(p.releasePool),
		"IpamDriver.RequestAddress":          taking(p.requestAddress),
		"IpamDriver.ReleaseAddress":          taking(p.releaseAddress),
	}
}

// nothing is an answer that says that it is done.
type nothing struct{}

// errMalformed is about a call that is none.
var errMalformed = errors.New("malformed call")

func taking[In, Out any](f func(context.Context, In) (Out, error)) method {
	return func(ctx context.Context, body []byte) (any, error) {
		var in In
		if len(body) == 0 { // Docker 20.10 repeats a call without its body
			return nil, fmt.Errorf("%w: it is empty, as one is that an engine repeats because ebpnet was stopped meanwhile; try again", errMalformed)
		}
		if err := json.Unmarshal(body, &in); err != nil {
			return nil, fmt.Errorf("%w: %w", errMalformed, err)
		}
		return f(ctx, in)
	}
}

func always(answer any) method {
	return func(context.Context, []byte) (any, error) { return answer, nil }
}

func (p *Plugin) routes() http.Handler {
	mux := http.NewServeMux()
	for name, f := range p.methods() {
		mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) { p.call(w, r, name, f) })
	}
	return mux
}

func (p *Plugin) call(w http.ResponseWriter, r *http.Request, name string, f method) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		err = fmt.Errorf("%w: %w", errMalformed, err)
	}
	var answer any
	if err == nil {
		p.log.Debug("Docker calls", "method", name, "body", string(body))
		answer, err = f(r.Context(), body)
	}
	status := http.StatusOK
	if err != nil {
		p.log.Warn("Docker's call failed", "method", name, "error", err)
		answer = failure(err)
		if errors.Is(err, errMalformed) {
			status = http.StatusBadRequest
		}
	}
	text, err := json.Marshal(answer)
	if err != nil {
		text, status = []byte(err.Error()), http.StatusInternalServerError
	}
	p.log.Debug("Docker is answered", "method", name, "status", status, "body", string(text))
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	if _, err := w.Write(text); err != nil {
		p.log.Warn("Docker did not take the answer", "method", name, "error", err)
	}
}

// failure says in one line what the engine shows its user. The network
// driver's part of the protocol has it as Err, the IPAM driver's as Error.
func failure(err error) map[string]string {
	line := driverName + ": " + agent.OneLine(err)
	return map[string]string{"Err": line, "Error": line}
}

// finishTimeout bounds, for a call that takes something away, how long that may take
// after the engine has hung up: longer than as many wait before it as a host has
// containers.
const finishTimeout = time.Minute

// finish is with for a call that takes something away: an engine that is
// stopped hangs up and does not ask again.
func (p *Plugin) finish(ctx context.Context, f func(hostAgent) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
	defer cancel()
	return p.with(ctx, f)
}

// with opens the host for one call.
func (p *Plugin) with(ctx context.Context, f func(hostAgent) error) (err error) {
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("stopped before it was its turn: %w", ctx.Err())
	}
	defer func() { <-p.turn }()
	h, err := p.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	return f(h)
}
