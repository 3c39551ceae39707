package docker

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// containerOn gives a container with an endpoint on each of the networks,
// NAME-NETWORK, and an id that begins with its name.
func containerOn(name string, networks ...string) container {
	c := container{id: (name + strings.Repeat("0", 64))[:64], name: name, attached: make(map[string]attachment)}
	for _, n := range networks {
		c.attached[n] = attachment{endpoint: name + "-" + n}
	}
	return c
}

// linked gives c with the links that it asks for on each of its networks.
func (c container) linked(links ...string) container {
	for n, at := range c.attached {
		at.links = links
		c.attached[n] = at
	}
	return c
}

func (c container) labelled(value string) container {
	c.labels = map[string]string{linkLabel: value}
	return c
}

// stopped gives c as it is while it does not run.
func (c container) stopped() container {
	for n, at := range c.attached {
		at.endpoint = ""
		c.attached[n] = at
	}
	return c
}

func parsePorts(t *testing.T, list ...string) []spec.Ports {
	t.Helper()
	var ports []spec.Ports
	for _, s := range list {
		p, err := spec.ParsePorts(s)
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, p)
	}
	return ports
}

// linkText writes a link as CLIENT SERVER:ALIAS PORTS.
func linkText(l spec.Link) string {
	ports := make([]string, len(l.Ports))
	for i, p := range l.Ports {
		ports[i] = p.String()
	}
	return l.Client + " " + l.Server + ":" + l.Alias + " " + strings.Join(ports, ",")
}

func TestWantedLinks(t *testing.T) {
	t.Parallel()
	redis, db := containerOn("redis", "web"), containerOn("db", "web")
	app := func() container { return containerOn("app", "web") }
	tests := map[string]struct {
		containers []container
		others     []spec.Link // of app-web
		want       []string
		complaints []string // CONTAINER: LINK: REASON, the beginning
	}{
		"nothing is asked for": {containers: []container{redis, app()}},
		"--link is to what the server exposes": {
			containers: []container{redis, app().linked("redis:cache")},
			want:       []string{"app-web redis-web:cache 6379/tcp"},
		},
		"without an alias": {
			containers: []container{redis, app().linked("redis")},
			want:       []string{"app-web redis-web:redis 6379/tcp"},
		},
		"by id and by how it begins": {
			containers: []container{redis, db, app().linked(redis.id+":cache", "db0000000000:db")},
			want:       []string{"app-web db-web:db 5432/tcp,53/udp", "app-web redis-web:cache 6379/tcp"},
		},
		"two letters are a name, not the beginning of an id": {
			containers: []container{redis, app().linked("re:cache")},
			complaints: []string{"app: re:cache: there is no container re"},
		},
		"a name goes before the beginning of an id": {
			containers: []container{redis, containerOn("redis0000000", "web"), app().linked("redis0000000")},
			want:       []string{"app-web redis0000000-web:redis0000000 80/tcp"},
		},
		"Compose's aliases: the first is taken": {
			containers: []container{redis, app().linked("redis:cache", "redis:redis_1", "redis:project_redis_1")},
			want:       []string{"app-web redis-web:cache 6379/tcp"},
		},
		"the first that can be an alias is taken": {
			containers: []container{redis, app().linked("redis:/app/cache", "redis:_", "redis:cache")},
			want:       []string{"app-web redis-web:cache 6379/tcp"},
		},
		"an alias that another server has": {
			containers: []container{redis, db, app().linked("redis:store", "db:store")},
			want:       []string{"app-web db-web:db 5432/tcp,53/udp", "app-web redis-web:store 6379/tcp"},
		},
		"an alias that no server can have": {
			containers: []container{redis, app().linked("redis:" + strings.Repeat("x", spec.MaxNameLength+1))},
			want:       []string{"app-web redis-web:redis 6379/tcp"},
		},
		"a label names ports": {
			containers: []container{redis, app().labelled("redis:7000-7002")},
			want:       []string{"app-web redis-web:redis 7000-7002/tcp"},
		},
		"a label without ports is to what the server exposes": {
			containers: []container{redis, app().labelled("redis")},
			want:       []string{"app-web redis-web:redis 6379/tcp"},
		},
		"a label names several, a server several times": {
			containers: []container{redis, db, app().labelled("redis:7000/udp, db:5432,redis:6379/tcp")},
			want:       []string{"app-web db-web:db 5432/tcp", "app-web redis-web:redis 6379/tcp,7000/udp"},
		},
		"ports of a link and a label are merged": {
			containers: []container{redis, app().linked("redis:cache").labelled("redis:6370-6400,redis:6390-6410")},
			want:       []string{"app-web redis-web:cache 6370-6410/tcp"},
		},
		"a server on another network": {
			containers: []container{containerOn("redis", "back"), app().linked("redis"), containerOn("two", "web").labelled("redis")},
			complaints: []string{"app: redis: redis is not on network the-web", "two: redis: redis is on none of the"},
		},
		"a label holds on each network that both are on, a link on its own": {
			containers: []container{
				containerOn("redis", "web", "back"),
				containerOn("app", "web", "back", "front").labelled("redis:1"),
				containerOn("two", "back").linked("redis:cache"),
			},
			want: []string{"app-back redis-back:redis 1/tcp", "app-web redis-web:redis 1/tcp", "two-back redis-back:cache 6379/tcp"},
		},
		"a server that does not run yet": {
			containers: []container{containerOn("redis", "web").stopped(), app().linked("redis").labelled("redis")},
		},
		"a client that does not run": {containers: []container{redis, app().linked("redis", "nothing").stopped()}},
		"a server that is not in the store": {
			containers: []container{containerOn("unknown", "web"), app().linked("unknown")},
		},
		"what cannot be does not stop the rest": {
			containers: []container{redis, app().linked("nothing:x", "redis", "app").labelled("redis:cache,:80,,redis:80/sctp")},
			want:       []string{"app-web redis-web:redis 6379/tcp"},
			complaints: []string{
				"app: nothing:x: there is no container nothing",
				"app: app: a container cannot be linked to itself",
				`app: redis:cache: invalid port "cache"`,
				"app: :80: a server is missing",
				"app: : a server is missing",
				`app: redis:80/sctp: invalid port "80/sctp"`,
			},
		},
		"a server that exposes nothing": {
			containers: []container{redis, containerOn("mute", "web"), app().linked("mute", "redis").labelled("mute:80")},
			want:       []string{"app-web mute-web:mute 80/tcp", "app-web redis-web:redis 6379/tcp"},
			complaints: []string{"app: mute: mute exposes no ports"},
		},
		"a link that the user made goes first": {
			containers: []container{redis, db, app().linked("redis", "db:store")},
			others:     []spec.Link{{Client: "app-web", Server: "redis-web", Alias: "store"}},
			want:       []string{"app-web db-web:db 5432/tcp,53/udp"},
		},
	}
	exposed := map[string][]spec.Ports{
		"app-web": nil, "app-back": nil, "app-front": nil, "two-web": nil, "two-back": nil, "mute-web": nil,
		"redis-web": parsePorts(t, "6379"), "redis-back": parsePorts(t, "6379"),
		"db-web": parsePorts(t, "53/udp", "5432"), "redis0000000-web": parsePorts(t, "80"),
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := linking{
				containers: test.containers,
				networks:   map[string]string{"web": "the-web", "back": "the-back", "front": "the-front"},
				exposed:    exposed,
				others:     map[string][]spec.Link{"app-web": test.others},
				complaints: make(map[complaint]struct{}),
			}
			var got []string
			for client, links := range l.wantedLinks() {
				for _, link := range links {
					got = append(got, linkText(link))
					if link.Client != client || link.Engine != engineName || spec.Name("alias", link.Alias) != nil {
						t.Errorf("of %s: %+v", client, link)
					}
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("links (-want +got):\n%s", diff)
			}
			checkComplaints(t, l.complaints, test.complaints)
		})
	}
}

func checkComplaints(t *testing.T, got map[complaint]struct{}, want []string) {
	t.Helper()
	for _, w := range want {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(got)), func(c complaint) bool {
			return strings.HasPrefix(c.container+": "+c.link+": "+c.reason, w) && !strings.Contains(c.reason, "\n")
		}) {
			t.Errorf("no complaint %q in %q", w, slices.Collect(maps.Keys(got)))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d complaints, want %d: %q", len(got), len(want), slices.Collect(maps.Keys(got)))
	}
}

// What is asked for twice gives the same each time, also while a server is
// away in between.
func TestServerComesAndGoes(t *testing.T) {
	t.Parallel()
	work := func(redis container) map[string][]spec.Link {
		l := linking{
			containers: []container{containerOn("app", "web").linked("redis:cache"), redis},
			exposed:    map[string][]spec.Ports{"app-web": nil, "redis-web": parsePorts(t, "6379")},
			complaints: make(map[complaint]struct{}),
		}
		return l.wantedLinks()
	}
	before := work(containerOn("redis", "web"))
	if links := work(containerOn("redis", "web").stopped())["app-web"]; links == nil || len(links) != 0 {
		t.Errorf("while the server is away: %v, want none, and that this is known", links)
	}
	if diff := cmp.Diff(before, work(containerOn("redis", "web"))); diff != "" || len(before["app-web"]) != 1 {
		t.Errorf("%v (-before +after):\n%s", before, diff)
	}
}
