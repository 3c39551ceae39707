package docker

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// linkLabel is the label of a container that asks for links by their ports:
// SERVER[:PORT[-END][/tcp|udp]][,...]. A server may come several times.
const linkLabel = "ebpnet.link"

// container is what an engine says of one, as far as links need it.
type container struct {
	id, name string
	labels   map[string]string     // that its image does not have as well
	attached map[string]attachment // by the id of the network
	// Its image would have it linked, which is not the image's to say: else
	// whoever makes an image had the run of a network without ICC.
	imageLabelled bool
}

// attachment is a container's place on a network of the driver.
type attachment struct {
	endpoint string   // its name in ebpnet; none while the container does not run
	links    []string // SERVER[:ALIAS]; not known of all containers
}

// linking is what links are worked out from.
type linking struct {
	containers []container             // all that the engine has
	networks   map[string]string       // the driver's networks: names by id
	exposed    map[string][]spec.Ports // by endpoint, of those that the store has
	others     map[string][]spec.Link  // that the engine did not ask for, by client
	complaints map[complaint]struct{}  // what cannot be linked
}

// complaint tells of something that a container asks for and cannot have.
type complaint struct{ container, link, reason string }

// wantedLinks gives the links of each client endpoint that the store has; none
// where nothing is asked for.
func (l *linking) wantedLinks() map[string][]spec.Link {
	wanted := make(map[string][]spec.Link)
	for i := range l.containers {
		client := &l.containers[i]
		for network, at := range client.attached {
			if _, stored := l.exposed[at.endpoint]; stored {
				wanted[at.endpoint] = l.linksOn(network, client)
			}
		}
	}
	return wanted
}

// request is one SERVER that a client asks for, as it stands in text.
type request struct {
	text, server, alias string
	ports               []spec.Ports // none: those that the server exposes
}

// linksOn gives the links of a client on one network.
func (l *linking) linksOn(network string, client *container) []spec.Link {
	var grants []*grant
	for _, text := range client.attached[network].links {
		r := parseLink(text)
		if server := l.find(client, r); server != nil {
			if _, on := server.attached[network]; !on {
				l.complain(client, r, fmt.Sprintf("%s is not on network %s", server.name, l.networks[network]))
			}
			grants = l.grant(grants, network, client, server, r)
		}
	}
	if client.imageLabelled {
		l.complain(client, request{text: linkLabel}, "the label is the image's; give the container one of its own, by --label, that is not the same")
	}
	for _, text := range labelled(client) {
		r, err := parseLabel(text)
		if err != nil {
			l.complain(client, r, err.Error())
			continue
		}
		if server := l.find(client, r); server != nil {
			if !share(client, server) {
				l.complain(client, r, fmt.Sprintf("%s is on none of the container's networks", server.name))
			}
			grants = l.grant(grants, network, client, server, r)
		}
	}
	return l.links(client, client.attached[network].endpoint, grants)
}

func labelled(c *container) []string {
	value, ok := c.labels[linkLabel]
	if !ok {
		return nil
	}
	return strings.Split(value, ",")
}

// parseLink reads SERVER[:ALIAS] as the engine keeps it.
func parseLink(text string) request {
	r := request{text: text}
	r.server, r.alias, _ = strings.Cut(text, ":")
	r.server = strings.TrimPrefix(r.server, "/")
	if r.alias == "" {
		r.alias = r.server
	}
	return r
}

// parseLabel reads SERVER[:PORT[-END][/tcp|udp]].
func parseLabel(text string) (request, error) {
	text = strings.TrimSpace(text)
	server, ports, limited := strings.Cut(text, ":")
	r := request{text: text, server: strings.TrimPrefix(server, "/")}
	r.alias = r.server
	if r.server == "" {
		return r, errors.New("a server is missing; want SERVER[:PORT[-END][/tcp|udp]][,...]")
	}
	if !limited {
		return r, nil
	}
	p, err := spec.ParsePorts(ports)
	r.ports = []spec.Ports{p}
	return r, err
}

func share(a, b *container) bool {
	for network := range a.attached {
		if _, both := b.attached[network]; both {
			return true
		}
	}
	return false
}

// find gives the container that a request means: one of that id or name, or
// the one whose id begins so, with at least as much of it as the engine shows:
// less could mean a container by chance. It complains and gives nil if there
// is none.
func (l *linking) find(client *container, r request) *container {
	var found *container
	for i := range l.containers {
		c := &l.containers[i]
		switch {
		case c.id == r.server || c.name == r.server:
			found = c
		case found == nil && len(r.server) >= spec.ShortID && strings.HasPrefix(c.id, r.server):
			found = c
		}
	}
	switch {
	case found == nil:
		l.complain(client, r, fmt.Sprintf("there is no container %s", r.server))
	case found.id == client.id:
		l.complain(client, r, "a container cannot be linked to itself")
		found = nil
	}
	return found
}

// grant is what a client gets of one server.
type grant struct {
	text    string // of the first request
	server  *container
	at      string // the server's endpoint
	aliases []string
	ports   []spec.Ports
}

// grant adds what r asks for, if the server has an endpoint on the network now.
func (l *linking) grant(grants []*grant, network string, client, server *container, r request) []*grant {
	at := server.attached[network].endpoint
	exposed, stored := l.exposed[at]
	if !stored {
		return grants
	}
	if len(r.ports) == 0 {
		if r.ports = exposed; len(exposed) == 0 {
			l.complain(client, r, fmt.Sprintf("%s exposes no ports; expose some, or name them by a label, like %s=%s:6379/tcp", server.name, linkLabel, r.server))
			return grants
		}
	}
	i := slices.IndexFunc(grants, func(g *grant) bool { return g.at == at })
	if i < 0 {
		i = len(grants)
		grants = append(grants, &grant{text: r.text, server: server, at: at})
	}
	g := grants[i]
	g.aliases = append(g.aliases, r.alias)
	g.ports = append(g.ports, r.ports...)
	return grants
}

// links makes links of what was granted. A server has one alias: the first of
// those asked for that can be one and that no other server of the client has.
func (l *linking) links(client *container, endpoint string, grants []*grant) []spec.Link {
	others := l.others[endpoint]
	links := []spec.Link{}
	for _, g := range grants {
		if slices.ContainsFunc(others, func(o spec.Link) bool { return o.Server == g.at }) {
			continue // the user has said what this server is open for
		}
		free := func(alias string) bool {
			same := func(o spec.Link) bool { return o.Alias == alias }
			return spec.Name("alias", alias) == nil && !slices.ContainsFunc(others, same) && !slices.ContainsFunc(links, same)
		}
		aliases := append(slices.Clone(g.aliases), g.server.name, g.at)
		i := slices.IndexFunc(aliases, free)
		if i < 0 {
			l.complain(client, request{text: g.text}, "all of its aliases are in use")
			continue
		}
		links = append(links, spec.Link{
			Client: endpoint, Server: g.at, Alias: aliases[i], Ports: mergePorts(g.ports), Engine: engineName,
		})
	}
	slices.SortFunc(links, func(a, b spec.Link) int { return strings.Compare(a.Server, b.Server) })
	return links
}

// mergePorts sorts ranges and makes one of those that overlap.
func mergePorts(ports []spec.Ports) []spec.Ports {
	sorted := slices.SortedFunc(slices.Values(ports), func(a, b spec.Ports) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.First, b.First))
	})
	merged := sorted[:0]
	for _, p := range sorted {
		if last := len(merged) - 1; last >= 0 && merged[last].Protocol == p.Protocol && p.First <= merged[last].Last {
			merged[last].Last = max(merged[last].Last, p.Last)
			continue
		}
		merged = append(merged, p)
	}
	return merged
}

func (l *linking) complain(client *container, r request, reason string) {
	l.complaints[complaint{client.name, r.text, reason}] = struct{}{}
}
