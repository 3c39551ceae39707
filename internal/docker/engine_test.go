package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/spec"
)

func TestNewEngine(t *testing.T) {
	t.Parallel()
	if e, err := NewEngine("unix:///run/docker.sock"); err != nil || e.socket != "/run/docker.sock" {
		t.Errorf("%+v, %v", e, err)
	}
	for _, address := range []string{"", "/run/docker.sock", "unix://", "unix://run/docker.sock", "tcp://127.0.0.1:2375", "ssh://host", "npipe:////./pipe/docker_engine"} {
		if _, err := NewEngine(address); !errors.Is(err, spec.ErrInvalid) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want ErrInvalid in one line", address, err)
		}
	}
}

// listen serves answers at a socket of the test's own.
func listen(t *testing.T, routes http.Handler) *Engine {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "engine.sock")
	t.Cleanup(serveAt(t, socket, routes))
	e, err := NewEngine("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.client.CloseIdleConnections)
	return e
}

// The ids in what Docker Engine 20.10 was recorded to answer.
const (
	webID   = "61534ae89d0c345cbe6e48b6d34673d4ada21d427d7e66da3cbc289a85c1d3eb"
	redisID = "3db89da9e733c845be4a6c3162e11a49ab6cd939104770a19451f326bd659056"
	appID   = "5f4b2ab3bb0f56781bafddf9d03585c081fecd80d11aa66684b3f04860050001"
	newID   = "a529c7ba1dc97fb8f163e717d5a900622a34249b8e0b27ee16653396cffb8a24"

	redisEndpoint = "67b11c40f40f546ce718097b274d992a9b2c3bfc1ee0914e60db8f149d95a056"
	appEndpoint   = "01ca186330437bd738c11b925ad4ba108fcc8bea5985a4e1a5c9d59c411e5f7e"
	newEndpoint   = "c7a0a2ae5f66c22a7ed61d9a3b3d81d0d4a2d2b8f6a1f0c2a30b5e8d8f1b7c11"
)

// The answers are recorded, shortened by fields that ebpnet does not read. The
// container "new" was being started.
const (
	engineID   = "RBMK:3P4C:HCHS"
	engineInfo = `{"ID":"` + engineID + `","Containers":3,"Driver":"overlay2"}`

	networksAnswer = `[{"Name":"web","Id":"` + webID + `","Created":"2026-11-23T17:26:34.288177496Z","Scope":"local","Driver":"ebpnet",
		"EnableIPv6":false,"IPAM":{"Driver":"default","Options":{},"Config":[{"Subnet":"172.18.0.0/16","Gateway":"172.18.0.1"}]},
		"Internal":false,"Containers":{},"Options":{},"Labels":{}}]`
	networkAnswer = `{"Name":"web","Id":"` + webID + `","Driver":"ebpnet","Containers":{
		"` + redisID + `":{"Name":"redis1","EndpointID":"` + redisEndpoint + `","MacAddress":"02:42:ac:12:00:02","IPv4Address":"172.18.0.2/16","IPv6Address":""},
		"` + newID + `":{"Name":"new","EndpointID":"` + newEndpoint + `","MacAddress":"02:42:ac:12:00:04","IPv4Address":"172.18.0.4/16","IPv6Address":""},
		"ep-ffff":{"Name":"","EndpointID":"ffff000000000000","MacAddress":"","IPv4Address":"","IPv6Address":""}}}`
	containersAnswer = `[
		{"Id":"` + newID + `","Names":["/new"],"Labels":{"ebpnet.link":"redis1:6380"},"State":"created","Status":"Created","HostConfig":{"NetworkMode":"61534ae89d0c"},
			"NetworkSettings":{"Networks":{"61534ae89d0c":{"IPAMConfig":null,"Links":null,"Aliases":null,"NetworkID":"","EndpointID":""}}}},
		{"Id":"` + appID + `","Names":["/app"],"Labels":{},"State":"running","HostConfig":{"NetworkMode":"web"},
			"NetworkSettings":{"Networks":{"web":{"IPAMConfig":null,"Links":null,"Aliases":null,"NetworkID":"` + webID + `","EndpointID":"` + appEndpoint + `"}}}},
		{"Id":"` + redisID + `","Names":["/redis1","/other/redis"],"Labels":{"a":"b"},"State":"running","HostConfig":{"NetworkMode":"web"},
			"NetworkSettings":{"Networks":{"bridge":{"NetworkID":"aa","EndpointID":"bb"},"web":{"Links":null,"NetworkID":"` + webID + `","EndpointID":"` + redisEndpoint + `"}}}}]`
	appAnswer = `{"Id":"` + appID + `","State":{"Status":"running","Running":true,"Pid":2811},"Name":"/app","HostConfig":{"Links":null},
		"NetworkSettings":{"SandboxKey":"/var/run/docker/netns/80a391110241","Networks":{"web":{"IPAMConfig":null,"Links":["redis1:redis","redis1"],
		"Aliases":["5f4b2ab3bb0f"],"NetworkID":"` + webID + `","EndpointID":"` + appEndpoint + `"}}}}`
	redisAnswer = `{"Id":"` + redisID + `","State":{"Status":"running","Running":true,"Pid":2700},"Name":"/redis1",
		"NetworkSettings":{"Networks":{"bridge":{"NetworkID":"aa","EndpointID":"bb"},"web":{"Links":null,"NetworkID":"` + webID + `","EndpointID":"` + redisEndpoint + `"}}}}`
	newAnswer = `{"Id":"` + newID + `","State":{"Status":"created","Running":false,"Pid":0},"Name":"/new",
		"NetworkSettings":{"Networks":{"61534ae89d0c":{"Links":["redis1:cache"],"Aliases":null,"NetworkID":"","EndpointID":""}}}}`
	eventsAnswer = `{"status":"create","id":"` + appID + `","from":"box:1","Type":"container","Action":"create","Actor":{"ID":"` + appID + `","Attributes":{"image":"box:1","name":"app"}},"scope":"local","time":1795454794,"timeNano":1795454794922199810}
{"Type":"network","Action":"connect","Actor":{"ID":"` + webID + `","Attributes":{"container":"` + appID + `","name":"web","type":"ebpnet"}},"scope":"local","time":1795454794,"timeNano":1795454794939678753}
`
)

// recorded serves what an engine was recorded to answer.
func recorded() *http.ServeMux {
	routes := http.NewServeMux()
	for path, answer := range map[string]string{
		"/info":                            engineInfo,
		"/networks":                        networksAnswer,
		"/networks/" + webID:               networkAnswer,
		"/containers/json":                 containersAnswer,
		"/containers/" + appID + "/json":   appAnswer,
		"/containers/" + redisID + "/json": redisAnswer,
		"/containers/" + newID + "/json":   newAnswer,
		"/events":                          eventsAnswer,
	} {
		routes.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) })
	}
	routes.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"message":"No such thing: %s"}`, r.URL.Path)
	})
	return routes
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	e := listen(t, recorded())
	networks, err := e.networks(t.Context(), driverName)
	if err != nil || len(networks) != 1 || networks[0] != (engineNetwork{webID, "web"}) {
		t.Errorf("%+v, %v", networks, err)
	}
	endpoints, err := e.endpoints(t.Context(), webID)
	if err != nil || len(endpoints) != 3 || endpoints[redisID] != (networkEndpoint{"redis1", redisEndpoint}) {
		t.Errorf("%+v, %v", endpoints, err)
	}
	containers, err := e.containers(t.Context())
	if err != nil || len(containers) != 3 || containers[0].Labels[linkLabel] != "redis1:6380" || containers[1].NetworkSettings.Networks["web"].EndpointID != appEndpoint {
		t.Errorf("%+v, %v", containers, err)
	}
	app, err := e.inspect(t.Context(), appID)
	if err != nil || app.State.Pid != 2811 || !slices.Equal(app.NetworkSettings.Networks["web"].Links, []string{"redis1:redis", "redis1"}) {
		t.Errorf("%+v, %v", app, err)
	}
	if _, err := e.inspect(t.Context(), "gone"); !errors.Is(err, errAbsent) || !strings.Contains(err.Error(), "No such thing") {
		t.Errorf("%v, want errAbsent", err)
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	asked := make(chan *http.Request, 1)
	routes := recorded()
	e := listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r
		routes.ServeHTTP(w, r)
	}))
	stream, err := e.subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	query := (<-asked).URL.Query()
	var wanted map[string][]string
	if err := json.Unmarshal([]byte(query.Get("filters")), &wanted); err != nil || !slices.Contains(wanted["event"], "connect") || query.Get("since") == "" {
		t.Errorf("%v, %v", query, err)
	}
	created, err := stream.next()
	if err != nil || created.Type != "container" || created.Action != "create" || created.Actor.ID != appID {
		t.Errorf("%+v, %v", created, err)
	}
	connected, err := stream.next()
	if err != nil || connected.Type != "network" || connected.Actor.ID != webID || connected.Actor.Attributes["container"] != appID {
		t.Errorf("%+v, %v", connected, err)
	}
	if ev, err := stream.next(); !errors.Is(err, io.EOF) {
		t.Errorf("%+v, %v, want EOF when the engine has gone", ev, err)
	}
	if err := stream.close(); err != nil {
		t.Error(err)
	}
}

func TestBadAnswers(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(http.ResponseWriter){
		"no JSON":      func(w http.ResponseWriter) { _, _ = io.WriteString(w, "hello") },
		"another type": func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{"message":"hello"}`) },
		"nothing":      func(http.ResponseWriter) {},
		"half":         func(w http.ResponseWriter) { _, _ = io.WriteString(w, networksAnswer[:40]) },
		"an error": func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"message":"it is broken"}`)
		},
		"not found without a word": func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) },
		"no end": func(w http.ResponseWriter) {
			for _, err := io.WriteString(w, "["); err == nil; _, err = io.WriteString(w, strings.Repeat(" ", maxEvent)) {
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := listen(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
			list, err := e.networks(t.Context(), driverName)
			if err == nil || errors.Is(err, errAbsent) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), e.socket) {
				t.Errorf("%v, %v, want an error in one line that names the socket", list, err)
			}
		})
	}
}

// Who labels a container must not keep others from being followed.
func TestTooLongEvent(t *testing.T) {
	t.Parallel()
	e := listen(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"Type":"container","from":"`+strings.Repeat("x", 2*maxEvent)+`"}`+"\n"+`{"Type":"network"}`+"\n")
	}))
	stream, err := e.subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"", "network"} {
		if ev, err := stream.next(); err != nil || ev.Type != want {
			t.Errorf("%+v, %v, want one of type %q", ev, err, want)
		}
	}
	if err := stream.close(); err != nil {
		t.Error(err)
	}
}

func TestNoEngine(t *testing.T) {
	t.Parallel()
	e, err := NewEngine("unix://" + filepath.Join(t.TempDir(), "none.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.containers(t.Context()); err == nil || !strings.Contains(err.Error(), e.socket) {
		t.Errorf("%v", err)
	}
	if _, err := e.subscribe(t.Context()); err == nil {
		t.Error("subscribed to nothing")
	}
}

// One container that is being started keeps nobody from inspecting another.
func TestInspectorDoesNotWait(t *testing.T) {
	t.Parallel()
	routes := recorded()
	started := make(chan struct{})
	inspections := make(chan string, 8)
	e := listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inspections <- r.URL.Path
		if strings.Contains(r.URL.Path, newID) {
			<-started
		}
		routes.ServeHTTP(w, r)
	}))
	news := make(chan struct{}, 8)
	ctx, cancel := context.WithCancel(t.Context())
	i := newInspector(e, slog.New(slog.DiscardHandler), func() { news <- struct{}{} })
	i.ask(ctx, newID)
	<-inspections
	i.ask(ctx, newID) // is under way
	i.ask(ctx, appID)
	<-news
	if app, known := i.answer(appID); !known || app.State.Pid != 2811 {
		t.Errorf("%+v, %t", app, known)
	}
	if _, known := i.answer(newID); known {
		t.Error("the engine has not answered")
	}
	i.askAnew(ctx, newID) // once more when it is done
	close(started)
	<-news
	for _, want := range []string{appID, newID} {
		if path := <-inspections; !strings.Contains(path, want) {
			t.Errorf("inspected %s, want %s", path, want)
		}
	}
	i.wait()
	if _, known := i.answer(newID); !known || len(news) != 0 || len(inspections) != 0 {
		t.Errorf("%t, %d more told, which were no news, and %d inspected", known, len(news), len(inspections))
	}
	cancel()
	i.ask(ctx, redisID)
	i.wait()
	if _, known := i.answer(redisID); known {
		t.Error("inspected after the end")
	}
}

func TestInspectorForgets(t *testing.T) {
	t.Parallel()
	i := newInspector(nil, slog.New(slog.DiscardHandler), nil)
	i.learn(appID, inspectedContainer{}, nil)
	i.learn(appID, inspectedContainer{}, errors.New("the engine is busy"))
	if _, known := i.answer(appID); !known {
		t.Error("a failure made it forget")
	}
	i.learn(appID, inspectedContainer{}, errAbsent)
	if _, known := i.answer(appID); known {
		t.Error("it is gone and still known")
	}
}
