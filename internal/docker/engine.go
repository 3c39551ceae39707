package docker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// Limits on the engine's answers: a list of ten thousand containers with many
// labels is shorter, and so is any event.
const (
	maxAnswer  = 64 << 20
	maxEvent   = 1 << 20
	maxMessage = 4096 // of an error
)

// callTimeout is how long the engine may take for an answer, but for that
// about a container.
const callTimeout = 10 * time.Second

// inspectTimeout is how long it may take about a container: until that has
// started or stopped, as the engine holds its lock meanwhile.
const inspectTimeout = time.Minute

// overlap is how far back events are asked for: the engine answers a moment
// before it has subscribed, and times events in whole seconds.
const overlap = 2 * time.Second

// errAbsent says that the engine has no such thing, or has it no more.
var errAbsent = errors.New("not there")

// Engine is a Docker Engine, spoken to by its API: the parts of it that are
// the same from API 1.41 (Docker 20.10) to 1.54 (Docker 29).
type Engine struct {
	socket string
	client *http.Client
}

// NewEngine gives the engine at a URL as in DOCKER_HOST, unix:///PATH. It does
// not look whether one is there. The error is spec.ErrInvalid for other URLs.
func NewEngine(address string) (*Engine, error) {
	socket, isUnix := strings.CutPrefix(address, "unix://")
	if !isUnix || !strings.HasPrefix(socket, "/") {
		return nil, fmt.Errorf("%w engine %q: ebpnet works on the engine's own host, want unix:///PATH, like unix:///run/docker.sock", spec.ErrInvalid, address)
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &Engine{socket: socket, client: &http.Client{Transport: &http.Transport{
		DialContext:     dial,
		IdleConnTimeout: callTimeout,
	}}}, nil
}

// engineNetwork is what a network is called.
type engineNetwork struct {
	ID   string `json:"Id"`
	Name string
}

// networkEndpoint is an endpoint of a network, from before its container's
// program starts.
type networkEndpoint struct {
	Name       string // of the container
	EndpointID string
}

// listedContainer is a container as a list tells of it: without waiting for it,
// and as of the last time that it started or stopped.
type listedContainer struct {
	ID              string `json:"Id"`
	Names           []string
	Labels          map[string]string
	State           string
	NetworkSettings networkSettings
}

// up tells whether the container's endpoints are there. An engine that was
// killed still tells of those that had been.
func (c listedContainer) up() bool { return c.State == "running" || c.State == "paused" }

// inspectedContainer is what only inspecting a container tells.
type inspectedContainer struct {
	State struct {
		Pid int // 0: it does not run
	}
	Image  string // its id
	Config struct {
		Labels map[string]string // its own and its image's
	}
	NetworkSettings networkSettings

	imageLabels map[string]string // those that its image has; asked for where they matter
}

// networkSettings are a container's interfaces, by the network's name, or by
// what the user called it until the container is started for the first time.
type networkSettings struct {
	Networks map[string]engineEndpoint
}

// engineEndpoint has ids while the container runs, and may have them after.
type engineEndpoint struct {
	NetworkID  string
	EndpointID string
	Links      []string // SERVER[:ALIAS]; null in lists
}

// event is a change that an engine tells of.
type event struct {
	Type   string
	Action string
	Actor  struct {
		ID         string
		Attributes map[string]string
	}
}

// id gives what tells the engine from others. It keeps that as long as its state.
func (e *Engine) id(ctx context.Context) (string, error) {
	var info struct{ ID string }
	err := e.get(ctx, callTimeout, &info, "/info", nil)
	return info.ID, err
}

// networks lists the networks of a driver.
func (e *Engine) networks(ctx context.Context, driver string) (list []engineNetwork, err error) {
	query, err := filters(map[string][]string{"driver": {driver}})
	if err != nil {
		return nil, err
	}
	return list, e.get(ctx, callTimeout, &list, "/networks", query)
}

// endpoints lists the endpoints of a network by their containers' ids; one
// that has no container yet is there under a word of the engine's own.
func (e *Engine) endpoints(ctx context.Context, network string) (map[string]networkEndpoint, error) {
	var n struct{ Containers map[string]networkEndpoint }
	err := e.get(ctx, callTimeout, &n, "/networks/"+network, nil)
	return n.Containers, err
}

// containers lists all containers, running or not.
func (e *Engine) containers(ctx context.Context) (list []listedContainer, err error) {
	return list, e.get(ctx, callTimeout, &list, "/containers/json", url.Values{"all": {"1"}})
}

// inspect tells of one container, errAbsent if it is gone. It waits while the
// container is being started or stopped, its driver asked for endpoints
// included: the driver must not wait for it.
func (e *Engine) inspect(ctx context.Context, id string) (c inspectedContainer, err error) {
	if err := e.get(ctx, inspectTimeout, &c, "/containers/"+id+"/json", nil); err != nil {
		return c, err
	}
	if _, labelled := c.Config.Labels[linkLabel]; labelled {
		c.imageLabels, err = e.imageLabels(ctx, c.Image)
	}
	if errors.Is(err, errAbsent) { // what its labels were nobody can tell
		c.imageLabels, err = c.Config.Labels, nil
	}
	return c, err
}

// imageLabels gives the labels that an image gives its containers.
func (e *Engine) imageLabels(ctx context.Context, id string) (map[string]string, error) {
	var image struct {
		Config struct{ Labels map[string]string }
	}
	err := e.get(ctx, callTimeout, &image, "/images/"+id+"/json", nil)
	return image.Config.Labels, err
}

func filters(wanted map[string][]string) (url.Values, error) {
	text, err := json.Marshal(wanted)
	return url.Values{"filters": {string(text)}}, err
}

// get reads one answer.
func (e *Engine) get(ctx context.Context, timeout time.Duration, into any, path string, query url.Values) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	body, err := e.open(ctx, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	limited := &io.LimitedReader{R: body, N: maxAnswer}
	if err := json.NewDecoder(limited).Decode(into); err != nil {
		if limited.N == 0 {
			err = fmt.Errorf("it is longer than %d bytes", maxAnswer)
		}
		return fmt.Errorf("engine at %s: answer to %s: %w", e.socket, path, err)
	}
	return nil
}

// open sends one request, and gives the body of a good answer.
func (e *Engine) open(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	to := url.URL{Scheme: "http", Host: "docker", Path: path, RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, to.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("engine at %s: %w", e.socket, err)
	}
	answer, err := e.client.Do(request)
	if err != nil {
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err // the URL's host means nothing
		}
		return nil, fmt.Errorf("engine at %s: %s: %w", e.socket, path, err)
	}
	if answer.StatusCode == http.StatusOK {
		return answer.Body, nil
	}
	defer answer.Body.Close()
	var said struct{ Message string }
	err = json.NewDecoder(io.LimitReader(answer.Body, maxMessage)).Decode(&said)
	if answer.StatusCode == http.StatusNotFound && err == nil {
		return nil, fmt.Errorf("engine at %s: %s: %w: %s", e.socket, path, errAbsent, said.Message)
	}
	return nil, fmt.Errorf("engine at %s: %s: status %s, %q", e.socket, path, answer.Status, said.Message)
}

// eventStream is what the engine tells from the time that it was asked.
type eventStream struct {
	body   io.ReadCloser
	lines  *bufio.Reader // whose buffer holds an event
	cancel context.CancelFunc
}

// followedActions are those of containers and networks that may change what
// Follow looks at.
func followedActions() []string {
	return []string{"create", "start", "rename", "die", "destroy", "connect", "disconnect"}
}

// subscribe asks for events from shortly before now, until ctx ends.
func (e *Engine) subscribe(ctx context.Context) (*eventStream, error) {
	query, err := filters(map[string][]string{"type": {"container", "network"}, "event": followedActions()})
	if err != nil {
		return nil, err
	}
	query.Set("since", strconv.FormatInt(time.Now().Add(-overlap).Unix(), 10))
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(callTimeout, cancel)
	body, err := e.open(ctx, "/events", query)
	if err == nil && !late.Stop() {
		err = errors.Join(context.DeadlineExceeded, body.Close())
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return &eventStream{body: body, lines: bufio.NewReaderSize(body, maxEvent), cancel: cancel}, nil
}

// next waits for an event; io.EOF when the engine has gone. One that is too
// long, as a container's labels may make it, is one of which nothing is known
// but that it happened.
func (s *eventStream) next() (ev event, err error) {
	line, err := s.lines.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = s.lines.ReadSlice('\n')
		}
		line = []byte("{}")
	}
	if err == nil {
		err = json.Unmarshal(line, &ev)
	}
	if err != nil {
		return ev, fmt.Errorf("events: %w", err)
	}
	return ev, nil
}

func (s *eventStream) close() error {
	s.cancel()
	return s.body.Close()
}
