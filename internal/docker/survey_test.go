package docker

import (
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/spec"
)

func identity(id, name string) spec.Identity {
	return spec.Identity{Engine: engineName, ID: id, Name: name}
}

// named is a network that an engine has confirmed.
func named(id, name, engine string) spec.Identity {
	return spec.Identity{Engine: engineName, ID: id, Name: name, Instance: engine}
}

// madeByDriver is what the driver has put into the store for the recorded
// engine, before Follow has seen it.
func madeByDriver(t *testing.T) stored {
	t.Helper()
	unnamed := spec.Identity{Engine: engineName}
	network := shortID(webID)
	return stored{
		networks: []spec.Network{{Name: network, Users: []spec.Identity{user(webID)}, Transient: true}},
		endpoints: map[string]spec.Endpoint{
			shortID(redisEndpoint): {Name: shortID(redisEndpoint), Network: network, Container: unnamed, Expose: parsePorts(t, "6379")},
			shortID(appEndpoint):   {Name: shortID(appEndpoint), Network: network, Container: unnamed},
			shortID(newEndpoint):   {Name: shortID(newEndpoint), Network: network, Container: unnamed},
		},
		links: map[string][]spec.Link{},
	}
}

// settled looks at an engine until all inspections are answered.
func settled(t *testing.T, e *Engine, s stored, ids ...string) *survey {
	t.Helper()
	i := newInspector(e, slog.New(slog.DiscardHandler), func() {})
	for _, id := range ids {
		i.ask(t.Context(), id)
	}
	i.wait()
	v, err := look(t.Context(), e, i, s)
	if err != nil {
		t.Fatal(err)
	}
	i.wait()
	return v
}

// A container that is being started has its links before its program runs, its
// namespace only after.
func TestSurvey(t *testing.T) {
	t.Parallel()
	e, s := listen(t, recorded()), madeByDriver(t)
	c, complaints := compare(s, settled(t, e, s, appID, redisID, newID))
	want := changes{
		names: []naming{{shortID(webID), named(webID, "web", engineID)}},
		places: []placing{
			{shortID(appEndpoint), identity(appID, "app"), 2811},
			{shortID(redisEndpoint), identity(redisID, "redis1"), 2700},
			{shortID(newEndpoint), identity(newID, "new"), 0},
		},
		links: map[string][]spec.Link{
			shortID(appEndpoint): {{
				Client: shortID(appEndpoint), Server: shortID(redisEndpoint), Alias: "redis", Ports: parsePorts(t, "6379"), Engine: engineName,
			}},
			shortID(newEndpoint): {{
				Client: shortID(newEndpoint), Server: shortID(redisEndpoint), Alias: "cache", Ports: parsePorts(t, "6379-6380"), Engine: engineName,
			}},
		},
	}
	want.links[shortID(newEndpoint)][0].Ports = parsePorts(t, "6379", "6380")
	if diff := cmp.Diff(want, c, cmp.AllowUnexported(changes{}, naming{}, placing{}, doubt{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(complaints) != 0 {
		t.Errorf("%v", complaints)
	}
}

// carriedOut is s with what c changes.
func carriedOut(s stored, c changes) stored {
	for _, n := range c.names {
		s.networks[0].Users[0] = n.user
	}
	for _, p := range c.places {
		e := s.endpoints[p.endpoint]
		e.Container = p.container
		if p.pid > 0 {
			e.Netns.Path = "/proc"
		}
		s.endpoints[p.endpoint] = e
	}
	for client, links := range c.links {
		s.links[client] = links
	}
	return s
}

func TestNothingChanges(t *testing.T) {
	t.Parallel()
	e, s := listen(t, recorded()), madeByDriver(t)
	v := settled(t, e, s, appID, redisID, newID)
	c, _ := compare(s, v)
	s = carriedOut(s, c)
	if again, _ := compare(s, settled(t, e, s, appID, redisID, newID)); !again.none() {
		t.Errorf("carried out and still wanted: %+v", again)
	}
	if !s.handed() {
		t.Error("the namespace of one is not known yet")
	}
	// A user's own link stays, and is no reason to change anything.
	mine := spec.Link{Client: shortID(appEndpoint), Server: shortID(redisEndpoint), Alias: "mine", Ports: parsePorts(t, "1")}
	s.links[mine.Client] = []spec.Link{mine}
	if again, _ := compare(s, settled(t, e, s, appID, redisID, newID)); !again.none() {
		t.Errorf("beside a user's link: %+v", again)
	}
}

// Until a container is inspected, it keeps the links that it has; as a restart
// of ebpnet must not cut its connections.
func TestLinksAreKeptUntilKnown(t *testing.T) {
	t.Parallel()
	e, s := listen(t, recorded()), madeByDriver(t)
	c, _ := compare(s, settled(t, e, s))
	if _, changed := c.links[shortID(appEndpoint)]; changed {
		t.Errorf("not known and changed: %v", c.links)
	}
	if links := c.links[shortID(newEndpoint)]; len(links) != 0 {
		t.Errorf("by a label, before it is known whether it is the image's: %v", links)
	}
	c, _ = compare(s, settled(t, e, s, newID))
	if links := c.links[shortID(newEndpoint)]; len(links) != 1 || linkText(links[0]) != shortID(newEndpoint)+" "+shortID(redisEndpoint)+":cache 6379/tcp,6380/tcp" {
		t.Errorf("by --link and by a label of its own: %v", links)
	}
	has := spec.Link{Client: shortID(appEndpoint), Server: shortID(redisEndpoint), Alias: "redis", Ports: parsePorts(t, "6379"), Engine: engineName}
	s.links[has.Client] = []spec.Link{has}
	if c, _ := compare(s, settled(t, e, s)); len(c.links[has.Client]) != 0 {
		t.Errorf("taken away: %v", c.links)
	}
	has.Server = shortID(newEndpoint)
	s.links[has.Client] = []spec.Link{has}
	c, _ = compare(s, settled(t, e, s))
	if _, changed := c.links[has.Client]; changed {
		t.Errorf("taken away before it is known: %v", c.links)
	}
	c, _ = compare(s, settled(t, e, s, appID))
	if links := c.links[has.Client]; len(links) != 1 || links[0].Server != shortID(redisEndpoint) {
		t.Errorf("known and not changed: %v", c.links)
	}
}

// Whoever makes an image must not say what its containers may reach.
func TestLabelOfTheImageLinksNothing(t *testing.T) {
	t.Parallel()
	const label = `"Config":{"Labels":{"ebpnet.link":"redis1:6380"}}`
	inspected := strings.Replace(newAnswer, `"State"`, `"Image":"sha256:1f","Config":{"Labels":{"ebpnet.link":"redis1:6380"}},"State"`, 1)
	for name, c := range map[string]struct {
		image string // none: it is gone
		links string
	}{
		"the container's own":         {`{"Config":{"Labels":null}}`, "6379/tcp,6380/tcp"},
		"the container's, not its":    {`{"Config":{"Labels":{"ebpnet.link":"redis1"}}}`, "6379/tcp,6380/tcp"},
		"the image's":                 {"{" + label + "}", "6379/tcp"},
		"nobody knows any more whose": {"", "6379/tcp"},
	} {
		routes := http.NewServeMux()
		routes.Handle("/", recorded())
		routes.HandleFunc("GET /containers/"+newID+"/json", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, inspected) })
		if c.image != "" {
			routes.HandleFunc("GET /images/sha256:1f/json", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, c.image) })
		}
		s := madeByDriver(t)
		changes, complaints := compare(s, settled(t, listen(t, routes), s, newID))
		links := changes.links[shortID(newEndpoint)]
		if len(links) != 1 || !strings.HasSuffix(linkText(links[0]), " "+c.links) {
			t.Errorf("%s: %v, want one to %s", name, links, c.links)
		}
		if told := len(complaints) > 0; told != (c.links == "6379/tcp") {
			t.Errorf("%s: complaints %v", name, complaints)
		}
	}
}

// A container is inspected again only if its networks or endpoints changed.
func TestInspectedOnce(t *testing.T) {
	t.Parallel()
	inspected := make(chan string, 8)
	routes := recorded()
	e := listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/containers/") && len(r.URL.Path) > len(appID) {
			inspected <- r.URL.Path
		}
		routes.ServeHTTP(w, r)
	}))
	s := madeByDriver(t)
	i := newInspector(e, slog.New(slog.DiscardHandler), func() {})
	for _, want := range []int{3, 1} { // the one that is being started is still not known to have been
		if _, err := look(t.Context(), e, i, s); err != nil {
			t.Fatal(err)
		}
		i.wait()
		if len(inspected) != want {
			t.Errorf("%d containers inspected, want %d", len(inspected), want)
		}
		for len(inspected) > 0 {
			<-inspected
		}
	}
}

func TestRename(t *testing.T) {
	t.Parallel()
	e, s := listen(t, recorded()), madeByDriver(t)
	v := settled(t, e, s, appID, redisID, newID)
	c, _ := compare(s, v)
	s = carriedOut(s, c)
	app := s.endpoints[shortID(appEndpoint)]
	app.Container.Name = "old"
	s.endpoints[app.Name] = app
	s.networks[0].Users[0].Name = "old"
	c, _ = compare(s, v)
	want := changes{
		names:  []naming{{shortID(webID), named(webID, "web", engineID)}},
		places: []placing{{app.Name, identity(appID, "app"), 0}},
		links:  map[string][]spec.Link{},
	}
	if diff := cmp.Diff(want, c, cmp.AllowUnexported(changes{}, naming{}, placing{}, doubt{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDoubt(t *testing.T) {
	t.Parallel()
	e, s := listen(t, recorded()), madeByDriver(t)
	lost := spec.Endpoint{Name: "aaaaaaaaaaaa", Network: shortID(webID), Container: spec.Identity{Engine: engineName}}
	late := spec.Endpoint{Name: "bbbbbbbbbbbb", Network: shortID(webID), Container: spec.Identity{Engine: engineName}}
	noContainer := spec.Endpoint{Name: "ffff00000000", Network: shortID(webID), Container: spec.Identity{Engine: engineName}}
	for _, e := range []spec.Endpoint{lost, late, noContainer} {
		s.endpoints[e.Name] = e
	}
	elsewhere := spec.Endpoint{Name: "cccccccccccc", Network: "other", Container: spec.Identity{Engine: engineName}}
	s.endpoints[elsewhere.Name] = elsewhere
	forgotten, removed := identity("f1", ""), named("f2", "was", engineID)
	s.networks = append(s.networks,
		spec.Network{Name: "forgotten", Users: []spec.Identity{forgotten}},
		spec.Network{Name: "removed", Users: []spec.Identity{removed, {Engine: "podman", ID: "f3"}}},
		spec.Network{Name: "other", Users: []spec.Identity{named("f4", "other", "another")}})
	v := settled(t, e, s)
	synctest.Test(t, func(t *testing.T) {
		f := follower{}
		if certain := f.doubt(s, v); len(certain) != 0 {
			t.Errorf("at once: %+v", certain)
		}
		time.Sleep(certainty - time.Nanosecond)
		if certain := f.doubt(s, v); len(certain) != 0 || len(f.doubts) != 7 {
			t.Errorf("too early: %+v, of %+v", certain, f.doubts)
		}
		v.listed[late.Name] = true
		f.doubt(s, v)
		delete(v.listed, late.Name) // its time begins anew
		time.Sleep(time.Nanosecond)
		expect := func(want ...doubt) {
			t.Helper()
			got := f.doubt(s, v)
			slices.SortFunc(got, func(a, b doubt) int { return strings.Compare(a.endpoint+a.network, b.endpoint+b.network) })
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(doubt{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
		expect(doubt{endpoint: lost.Name}, doubt{endpoint: elsewhere.Name}, doubt{network: "removed", user: removed})
		if certain := f.doubt(s, v); len(certain) != 0 {
			t.Errorf("at once again: %+v", certain)
		}
		delete(s.endpoints, elsewhere.Name)
		delete(s.endpoints, late.Name)
		s.networks = s.networks[:2]
		time.Sleep(slowCertainty - certainty)
		expect(doubt{endpoint: lost.Name}, doubt{endpoint: lost.Name, inUse: true}, doubt{network: "forgotten", user: forgotten})
	})
}

// An engine that was killed tells of endpoints of containers that it ended.
func TestEndedContainer(t *testing.T) {
	t.Parallel()
	routes := http.NewServeMux()
	routes.Handle("/", recorded())
	answer := func(path, text string) {
		routes.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })
	}
	answer("/containers/json", strings.ReplaceAll(containersAnswer, `"running"`, `"exited"`))
	answer("/networks/"+webID, `{"Name":"web","Id":"`+webID+`","Driver":"ebpnet","Containers":{}}`)
	answer("/containers/"+appID+"/json", strings.ReplaceAll(appAnswer, `"Pid":2811`, `"Pid":0`))
	e, s := listen(t, routes), madeByDriver(t)
	v := settled(t, e, s, appID, redisID, newID)
	if c, _ := compare(s, v); len(c.places)+len(c.links) != 0 {
		t.Errorf("%+v", c)
	}
	f := follower{}
	f.doubt(s, v)
	if len(f.doubts) != 2*len(s.endpoints) { // of each, whether or not a container has it
		t.Errorf("doubts %v, want all of %v", f.doubts, s.endpoints)
	}
}

// What another engine has confirmed is its own; what none has is in doubt.
func TestAnotherEngine(t *testing.T) {
	t.Parallel()
	s := stored{networks: []spec.Network{
		{Name: "a", Users: []spec.Identity{named("f1", "confirmed", "another")}},
		{Name: "b", Users: []spec.Identity{identity("f2", "")}},
		{Name: "c", Users: []spec.Identity{named("f3", "confirmed", "this")}},
	}}
	got := doubts(s, &survey{engine: "this"})
	slices.SortFunc(got, func(a, b doubt) int { return strings.Compare(a.network, b.network) })
	want := []doubt{{network: "b", user: identity("f2", "")}, {network: "c", user: named("f3", "confirmed", "this")}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(doubt{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTell(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		f := follower{log: slog.New(slog.NewTextHandler(&text, nil))}
		bad := complaint{"app", "nothing:x", "there is none"}.warning()
		mild := warning{text: "mild", mild: true}
		for i, step := range []struct {
			after    time.Duration
			warnings []warning
			want     int
		}{
			{0, []warning{bad, mild}, 1},
			{certainty - 1, []warning{bad, mild}, 0},
			{1, []warning{bad, mild}, 1},
			{1, []warning{bad, mild}, 0},
			{1, nil, 0},
			{certainty, []warning{bad, mild}, 1},
			{certainty, []warning{bad}, 0},
			{0, []warning{bad, mild}, 0},
			{0, []warning{bad, mild}, 0},
		} {
			time.Sleep(step.after)
			text.Reset()
			f.tell(step.warnings)
			if lines := strings.Count(text.String(), "\n"); lines != step.want {
				t.Errorf("step %d, %+v: %d lines, want %d:\n%s", i, step.warnings, lines, step.want, text.String())
			}
		}
	})
}
